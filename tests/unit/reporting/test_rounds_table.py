"""History -> rows, tables and plots."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fl_queue import metrics
from fl_queue.errors import ConfigError, DataError
from fl_queue.reporting import rounds_table
from tests.support.recorded_rounds import abandoned, closing, record, sums

PNG = b"\x89PNG\r\n\x1a\n"


def rendered(rows: list[rounds_table.RoundRow]) -> str:
    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(rounds_table.table(rows))
    return console.export_text()


def test_row_has_the_counts_of_its_round() -> None:
    rejected = {"hospital-c": "invalid: NaN", "hospital-d": "stale: 2"}
    ended = record(1, 0, rejected=rejected, digest="7dc1")

    (row,) = rounds_table.rows([ended], {1: {"accuracy": 0.91, "loss": 0.3}}, {1: 4, 2: 9})

    assert row == rounds_table.RoundRow(
        round=1,
        outcome="committed",
        accepted=2,
        late=4,
        rejected=2,
        version=1,
        loss=0.3,
        accuracy=0.91,
        source="test",
        seconds=12.34,
        reason="quorum of 2 reached",
        digest="7dc1",
    )


def test_validation_is_of_the_version_it_was_made_on() -> None:
    history = [
        record(1, 0, validation=sums(1, 9)),
        record(2, 1, validation=sums(6, 4)),
        record(3, 2, validation=sums(7, 3)),
    ]

    rows = rounds_table.rows(history, {}, {})

    assert [row.accuracy for row in rows] == [0.6, 0.7, None]
    assert [row.loss for row in rows] == [0.5, 0.5, None]
    assert [row.source for row in rows] == ["validation", "validation", ""]


def test_validation_has_its_number_of_clients_and_examples() -> None:
    merged = metrics.merge_clients({"a": sums(6, 4), "b": {"num_examples": 0}, "c": sums(3, 1)})
    (row,) = rounds_table.rows([record(1, 0), closing(2, 1, validation=merged)], {}, {})

    assert (row.accuracy, row.clients, row.examples) == (9 / 14, 2, 14)
    assert "version 1 of 2 clients with 14 examples" in rendered([row])
    assert rounds_table.coverage_in_words({"f1": (1, 3), "loss": (2, 5), "auc": (1, 3)}) == (
        "f1, auc: 1 client, 3 examples; loss: 2 clients, 5 examples"
    )


def test_metrics_of_different_clients_each_have_their_numbers() -> None:
    merged = metrics.merge_clients(
        {"a": sums(6, 4), "b": {"num_examples": 5, "loss_sum": 5.0}, "c": {"num_examples": 0}}
    )
    (row,) = rounds_table.rows(
        [record(1, 0, train=merged), closing(2, 1, validation=merged)], {}, {}
    )

    assert (
        row.coverage == row.train_coverage == {"accuracy": [1, 10], "f1": [1, 10], "loss": [2, 15]}
    )
    words = "accuracy: 1 client, 10 examples; loss: 2 clients, 15 examples"
    assert rounds_table.judged_by(row) == words
    assert f"for version 1 {words}" in " ".join(rendered([row]).split())
    assert words.replace("accuracy", "accuracy, f1") in rounds_table.to_csv([row])
    assert rounds_table.with_coverage({"loss": 0.5, "f1": 1.0}, {"loss": (1, 3)}) == (
        "loss 0.5000 (1 client, 3 examples), f1 1.0000"
    )


def test_closing_evaluation_judges_the_last_version_and_is_no_row() -> None:
    history = [record(1, 0), closing(2, 1, validation=sums(9, 1))]

    rows = rounds_table.rows(history, {}, {})

    assert [(row.round, row.accuracy, row.source) for row in rows] == [(1, 0.9, "validation")]


def test_central_test_wins_over_validation() -> None:
    history = [record(1, 0), record(2, 1, validation=sums(6, 4))]

    rows = rounds_table.rows(history, {1: {"accuracy": 0.55}, 2: {}}, {})

    assert [(row.accuracy, row.loss, row.source) for row in rows] == [
        (0.55, None, "test"),
        (None, None, ""),
    ]


def own(correct: int, wrong: int, **parts: tuple[int, int]) -> dict[str, Any]:
    """Validation sums of a version, and of other models beside it."""
    beside = {
        k: v for part, (r, w) in parts.items() for k, v in metrics.beside(part, sums(r, w)).items()
    }
    return sums(correct, wrong) | beside


def test_what_clients_have_of_their_own_is_beside_the_test_and_has_columns_where_there_is_any() -> (
    None
):
    history = [record(1, 0), record(2, 1, validation=own(5, 5, personal=(9, 1)))]

    rows = rounds_table.rows(history, {1: {"accuracy": 0.55, "loss": 1.0}}, {})

    assert [(r.accuracy, r.source, r.personal_accuracy) for r in rows] == [
        (0.55, "test", 0.9),
        (None, "", None),
    ]
    text = rendered(rows)
    assert ("Personal" in text, "Finetuned" in text, "0.5500 " in text) == (True, False, True)
    assert "0.9000*" in text
    assert "* the clients' validation " in text
    assert "Personal" not in rendered(rounds_table.rows([record(1, 0)], {}, {}))


def test_plot_shows_what_clients_have_of_their_own(tmp_path: Path) -> None:
    finished = {"accuracy": 0.5, "personal_accuracy": 0.9}
    history = [
        record(1, 0, validation=own(5, 5, personal=(9, 1)), client_validation={"a": finished}),
        record(2, 1, validation=own(5, 5, personal=(9, 1))),
    ]
    path = tmp_path / "plot.svg"
    rounds_table.plot(path, history, {})
    text = path.read_text()
    for label in (
        "personal models, clients' validation",
        "range over the clients, personal models",
    ):
        assert f"<!-- {label} -->" in text
    assert "fine-tuned" not in text


def test_abandoned_round_has_no_version_and_no_metrics() -> None:
    (row,) = rounds_table.rows([abandoned(3, 2)], {2: {"accuracy": 0.9}}, {})

    assert (row.outcome, row.version, row.accuracy, row.source) == ("abandoned", None, None, "")
    assert row.reason == "quorum not reached [one of two]"


def test_validation_with_the_most_clients_counts_when_rounds_share_a_base() -> None:
    one_client = {"hospital-a": {"accuracy": 0.1}}
    few = abandoned(2, 1, validation=sums(1, 9), client_validation=one_client)
    full = record(3, 1, validation=sums(6, 4))
    newer = record(4, 1, validation=sums(7, 3))

    assert rounds_table.validation([few, full])[1]["accuracy"] == 0.6
    assert rounds_table.validation([full, few])[1]["accuracy"] == 0.6
    assert rounds_table.validation([full, newer])[1]["accuracy"] == 0.7


def test_round_without_validation_gives_none() -> None:
    history = [record(1, 0, validation={}), record(2, 1, validation={"num_examples": 0})]

    assert rounds_table.validation(history) == {}


def test_table_shows_every_round_and_why_one_was_abandoned() -> None:
    history = [record(1, 0), abandoned(2, 1), record(3, 1), closing(4, 2)]

    text = rendered(rounds_table.rows(history, {1: {"loss": 0.25, "accuracy": 0.9}}, {1: 3}))

    header, *lines = [
        line.split() for line in text.replace("│", " ").replace("┃", " ").splitlines()[1:]
    ]
    assert " ".join(header) == "Round Accepted Late Rejected Version Loss Accuracy Seconds"
    assert " ".join(lines[1]) == "1 2 3 0 1 0.2500 0.9000 12.3"
    assert " ".join(lines[2]) == "2 1 0 0 abandoned - - 12.3"
    assert " ".join(lines[3]) == "3 2 0 0 2 0.5000* 0.8000* 12.3"
    assert "round 2 abandoned: quorum not reached [one of two]" in text
    assert "* the clients' validation" in text


def test_table_without_rounds_is_a_header() -> None:
    assert "Round" in rendered([])


def test_json_and_csv_carry_every_field() -> None:
    rows = rounds_table.rows([record(1, 0, reason="a, b"), abandoned(2, 1)], {}, {})

    as_json = json.loads(json.dumps(rounds_table.to_json(rows)))
    as_csv = list(csv.DictReader(io.StringIO(rounds_table.to_csv(rows))))

    assert [rounds_table.RoundRow(**item) for item in as_json] == rows
    assert list(as_csv[0]) == [name for name in as_json[0] if name != "training"]
    assert (as_csv[0]["reason"], as_csv[1]["version"], as_csv[1]["loss"]) == ("a, b", "", "")


def test_plot_shows_each_metric_there_is(tmp_path: Path) -> None:
    history = [record(1, 0), record(2, 1), closing(3, 2)]
    tests = {version: {"accuracy": 0.5 + 0.1 * version, "loss": 1.0} for version in range(3)}
    both, one = tmp_path / "both.png", tmp_path / "one"

    rounds_table.plot(both, history, tests)
    rounds_table.plot(one, [], {1: {"loss": 0.4}})

    assert both.read_bytes()[:8] == one.read_bytes()[:8] == PNG
    height = {path: int.from_bytes(path.read_bytes()[20:24]) for path in (both, one)}
    assert height[both] > 1.5 * height[one]


def test_plot_takes_its_format_from_the_suffix(tmp_path: Path) -> None:
    rounds_table.plot(tmp_path / "curve.svg", [record(1, 0)], {})
    text = (tmp_path / "curve.svg").read_text()
    assert "<svg" in text

    with pytest.raises(ConfigError, match="no image format docx"):
        rounds_table.plot(tmp_path / "curve.docx", [record(1, 0)], {})


def test_plot_names_its_axes_and_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("matplotlib").rcParams, "svg.fonttype", "none")

    rounds_table.plot(tmp_path / "curve.svg", [record(1, 0)], {0: {"accuracy": 0.4, "loss": 2.0}})

    text = (tmp_path / "curve.svg").read_text()
    for words in (
        "Accuracy by model version",
        "Loss by model version",
        "Model version (0: the initial model)",
        "central test",
        "clients' validation",
        "range over the clients",
        ">Accuracy<",
        ">Loss<",
    ):
        assert words in text


def test_plot_without_data_is_an_error_and_keeps_the_file(tmp_path: Path) -> None:
    path = tmp_path / "curve.png"
    path.write_bytes(b"older")

    with pytest.raises(DataError, match="nothing to plot yet"):
        rounds_table.plot(path, [record(1, 0, validation={})], {})

    assert path.read_bytes() == b"older"


def test_plot_that_cannot_be_written_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "curve.png"

    with pytest.raises(DataError, match="cannot be written: No such file") as caught:
        rounds_table.plot(path, [record(1, 0)], {})

    assert caught.value.path == str(path)


def test_plot_without_matplotlib_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)

    with pytest.raises(ConfigError, match=r'pip install "\S+\[plot\]"'):
        rounds_table.plot(tmp_path / "curve.png", [record(1, 0)], {})


def test_importing_report_loads_neither_matplotlib_nor_redis_nor_torch() -> None:
    code = (
        "import sys, fl_queue.reporting.rounds_table\n"
        "print(sorted({'matplotlib', 'redis', 'torch'} & set(sys.modules)))"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )

    assert done.stdout == "[]\n"


def test_what_the_training_logged_is_in_rows_table_csv_and_plot(tmp_path: Path) -> None:
    trained = {"num_examples": 10, "loss_sum": 5.0, "gap_sum": 2.5}
    records = [record(1, 0, train=trained), abandoned(2, 1, train=trained), record(3, 1)]
    rows = rounds_table.rows(records, {}, {})
    assert [dict(row.training) for row in rows] == [{"gap": 0.25}, {}, {}]
    assert rounds_table.training(records) == {1: {"gap": 0.25}}

    found = list(csv.DictReader(io.StringIO(rounds_table.to_csv(rows))))
    assert [row["train_gap"] for row in found] == ["0.25", "", ""]
    console = Console(record=True, width=200)
    console.print(rounds_table.table(rows))
    shown = console.export_text()
    assert "gap" in shown
    assert "0.2500" in shown

    rounds_table.plot(tmp_path / "with.png", records, {})
    rounds_table.plot(tmp_path / "without.png", [record(1, 0), record(3, 1)], {})
    heights = [
        int.from_bytes((tmp_path / name).read_bytes()[20:24])
        for name in ("with.png", "without.png")
    ]
    assert heights[0] > heights[1]  # A panel more.
