"""The result of a run of trees as text."""

from __future__ import annotations

import io

from rich.console import Console

from fl_queue.reporting import analysis_result

RESULT = {
    "task": "trees",
    "file": "table.csv",
    "objective": "binary:logistic",
    "target": "died",
    "sites": 3,
    "rows": 1450,
    "validation_rows": 300,
    "trees": 5,
    "iterations": 5,
    "grown": 8,
    "nodes": 71,
    "steps": 27,
    "loss": [0.69, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1],
    "validation_loss": [0.7, 0.6, 0.5, 0.5, 0.45, 0.4, 0.41, 0.42, 0.43],
    "importance": [
        {"column": "age", "gain": 75.0, "share": 0.75, "splits": 12},
        {"column": "sex", "gain": 25.0, "share": 0.25, "splits": 3},
    ],
}


def test_the_result_is_shown() -> None:
    """Rows, trees, losses of the trees that are kept, and columns by their gain."""
    console = Console(file=io.StringIO(), width=100)
    for part in analysis_result.renderables(RESULT):
        console.print(part)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for line in (
        "table.csv: binary:logistic of died, 1,450 rows at 3 sites",
        "5 trees, 71 nodes (of 8 iterations the first 5), 27 rounds",
        "loss: 0.69 before the first tree, 0.25 after the last",
        "validation loss, 300 rows: 0.7 before the first tree, 0.4 after the last",
    ):
        assert line in text
    rows = [line.replace("│", " ").split() for line in text.splitlines()]
    assert ["age", "75", "75.0", "%", "12"] in rows
    assert ["sex", "25", "25.0", "%", "3"] in rows
