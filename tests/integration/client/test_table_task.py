"""The task ``table`` in a whole run: sites with tables in forms of their own, one of them with a wrong cell."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fl_queue import Run, metrics
from fl_queue.config import loading
from fl_queue.coordinator.rounds import lifecycle, runs
from fl_queue.models import selection
from fl_queue.store.embedded.server_pair import start
from fl_queue.tasks.loading import load_task
from tests.support.federation import Federation, wait_for
from tests.support.server_binaries import chosen_server

STAGES = ("I", "II", "III", "IV")


def table(count: int, seed: int, mark: str, decimal: str) -> list[str]:
    """Lines of a table as the preset ``table`` has it, with gaps."""
    drawn = np.random.default_rng(seed)
    lines = [mark.join(["id", "died", "age", "stage", "smoker", "admitted", "crp"])]
    for number in range(count):
        age, stage, smoker = drawn.normal(60, 12), int(drawn.integers(0, 4)), drawn.random() < 0.4
        risk = (age - 60) / 12 + stage - 1.5 + (1 if smoker else -0.5)
        cells = [
            f"p{number}",
            "yes" if drawn.random() < 1 / (1 + np.exp(-2 * risk)) else "no",
            f"{age:.1f}".replace(".", decimal),
            STAGES[stage] if drawn.random() > 0.05 else "NA",
            "yes" if smoker else "no",
            str(np.datetime64("2015-01-01") + int(drawn.integers(0, 3000))),
            f"{drawn.gamma(2, 10):.2f}".replace(".", decimal) if drawn.random() > 0.1 else "",
        ]
        lines.append(mark.join(cells))
    return lines


@pytest.fixture
def sites(tmp_path: Path, no_process_left: None) -> Iterator[Federation]:
    """An aggregator, an evaluator, two sites with tables, and a third whose table has a wrong cell."""
    tables = {
        "site-1": table(200, 1, ";", ","),
        "site-2": table(300, 2, ",", "."),
        "site-3": [*table(3, 3, ",", "."), "p3,yes,sixty-one,II,no,2020-01-01,3"],
        "evaluator": table(300, 4, ",", "."),
    }
    for name, lines in tables.items():
        (tmp_path / name).mkdir()
        which = "test.csv" if name == "evaluator" else "train.csv"
        (tmp_path / name / which).write_text("\n".join(lines) + "\n")
    with start(tmp_path / "state", server=chosen_server()) as redis:
        made = Federation(redis, tmp_path, 0, evaluator=False, forked=True)
        try:
            for name in tables:
                made.start(name, "--data", str(tmp_path / name))
            wait_for("workers", lambda: len(made.store.control.workers.living()) == 5, 120)
            yield made
        finally:
            made.close()


def test_sites_train_on_their_tables_as_they_are_and_the_model_takes_raw_rows(
    sites: Federation,
) -> None:
    loaded = loading.load(
        "table",
        (
            "run.rounds=3", "run.preflight=off", "round.cohort=1.0", "round.quorum=2", "round.deadline_s=120",
            "train.epochs=4", "round.grace_s=100",
        ),
    )  # fmt: skip
    state = runs.start_run(sites.store, "tables", loaded, 3)
    lifecycle.advance(sites.store, state.run_id)
    runs_ended = sites.finish(state.run_id, 120)

    assert (runs_ended.state, runs_ended.version) == ("completed", 3)
    for record in sites.committed(state.run_id):
        assert sorted(record.accepted) == ["site-1", "site-2"]
        # One that cannot train wipes nothing of what the others report.
        assert metrics.told_by(record.validation)["auc"] == (2, 100)
    reason = sites.committed(state.run_id)[0].rejected["site-3"]
    assert "train.csv: line 5, column age: not a number" in reason
    assert "sixty" not in reason

    tested = wait_for(
        "the test of version 3",
        lambda: selection.test_metrics(sites.store, state.run_id).get(3),
    )
    assert tested["auc"] > 0.8
    redis = sites.redis
    with Run.attach(
        "tables", redis_url=redis.url, blob_url=redis.blob_url, state_dir=redis.state_dir
    ) as run:
        weights: dict[str, Any] = run.model(3)
    task = load_task("table", loaded)
    model = task.build_model()
    model.load_state_dict(weights)
    data = task.test_data(str(sites.folder / "evaluator"))
    assert data is not None
    rows, target = data[:]  # type: ignore[index]
    with torch.no_grad():
        found = (model.eval()(rows) > 0).long()
    assert float((found == target).double().mean()) == tested["accuracy"]
