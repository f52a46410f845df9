"""Several runs side by side, and one local round without Redis."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fl_queue import metrics
from fl_queue.cli import cli
from fl_queue.config import loading
from fl_queue.coordinator.rounds import runs
from fl_queue.errors import ConfigError, UnknownRun
from fl_queue.reporting import comparison
from fl_queue.store import Store
from fl_queue.web import view_model
from tests.support.recorded_rounds import (
    abandoned,
    add_rounds,
    closing,
    record,
    start_scored_run,
    sums,
)


def test_runs_are_shown_with_the_fields_they_differ_in(store: Store) -> None:
    first = start_scored_run(store, "first", [0.5, 0.9, 0.8], "train.epochs=2")
    add_rounds(store, first.run_id, abandoned(4, 3))
    second = start_scored_run(store, "second", [], "train.epochs=3", "redis.inline_bytes=2048")

    one, two = comparison.compare(store, [first, second], "accuracy")

    assert (one.value, one.best, one.best_version, one.abandoned) == (0.8, 0.9, 2, 1)
    assert one.seconds == pytest.approx(4 * 12.34)
    assert (two.version, two.value, two.best_version) == (0, None, None)
    assert one.settings["train.epochs"] == 2
    assert two.settings["train.epochs"] == 3
    assert set(one.settings) == {"train.epochs", "redis.inline_bytes"}
    assert comparison.sweeps([one, two]) == []


def test_a_value_of_the_clients_validation_has_its_clients_and_examples(
    store: Store, redis_urls: tuple[str, str]
) -> None:
    merged = metrics.merge_clients({"a": sums(6, 4), "b": {"num_examples": 5, "loss_sum": 5.0}})
    states = [runs.start_run(store, name, loading.load("mnist-3v7"), 2) for name in ("one", "two")]
    for state in states:
        add_rounds(store, state.run_id, record(1, 0), closing(2, 1, validation=merged))
    tested = start_scored_run(store, "tested", [0.5, 0.9])

    found = comparison.compare(store, [*states, tested], "accuracy")
    assert [(row.value, row.clients, row.examples) for row in found] == [
        (0.6, 1, 10), (0.6, 1, 10), (0.9, None, None)
    ]  # fmt: skip
    (row, *_) = comparison.compare(store, states, "loss")
    assert (row.value, row.clients, row.examples) == (pytest.approx(2 / 3), 2, 15)

    def command(*words: str) -> str:
        where = ["--redis-url", redis_urls[0], "--blob-url", redis_urls[1]]
        return CliRunner().invoke(cli, [*words, *where], catch_exceptions=False).output

    assert "Clients" in command("compare", "one", "two")
    assert "Clients" not in command("compare", "tested")
    line = "clients' validation of version 1: accuracy 0.6000, f1 0.7500 (1 client, 10 examples), loss 0.6667 (2 clients, 15 examples)"
    assert line.replace("f1 0.7500", "f1 0.0000") in command("status", "one")
    shown = json.loads(command("status", "one", "--json"))
    assert shown["validated"] == 1
    assert shown["validation"]["accuracy"] == {"value": 0.6, "clients": 1, "examples": 10}
    rows = json.loads(command("history", "one", "--json"))["rounds"]
    assert rows[0]["coverage"] == {"accuracy": [1, 10], "f1": [1, 10], "loss": [2, 15]}
    page = view_model.history(store, states[0].run_id)["rounds"][0]["judged_by"]
    assert page == "accuracy, f1: 1 client, 10 examples; loss: 2 clients, 15 examples".replace(
        ", f1", ""
    )


def test_seeds_have_a_mean_and_a_spread(store: Store, redis_urls: tuple[str, str]) -> None:
    seeds = [
        start_scored_run(store, f"s{n}", [0.5, 0.7 + n / 10], f"run.seed={n}") for n in range(3)
    ]
    other = start_scored_run(store, "other", [0.1], "run.seed=1", "train.epochs=9")

    (sweep,) = comparison.sweeps(comparison.compare(store, [*seeds, other], "accuracy"))
    assert sweep.runs == ["s0", "s1", "s2"]
    assert (sweep.mean, sweep.deviation) == (pytest.approx(0.8), pytest.approx(0.1))

    def compare(*arguments: str) -> Result:
        where = ["--redis-url", redis_urls[0], "--blob-url", redis_urls[1]]
        return CliRunner().invoke(cli, ["compare", *arguments, *where])

    text = compare("s0", "s1", "s2").output
    assert "s0, s1, s2 differ in run.seed alone: accuracy 0.8000 ± 0.1000" in text
    found = json.loads(compare("s0", "other", "--json").output)
    assert found["runs"][1]["settings"] == {"run.seed": 1, "train.epochs": 9}
    assert isinstance(compare("s0", "absent").exception, UnknownRun)


def test_a_metric_that_no_run_has_is_refused_with_the_list(
    store: Store, redis_urls: tuple[str, str]
) -> None:
    start_scored_run(store, "judged", [0.5])
    regression = runs.start_run(store, "regression", loading.load("mnist-3v7", (), {}), 3)
    loss = metrics.merge_clients({"a": {"num_examples": 4, "loss_sum": 2.0}})
    add_rounds(store, regression.run_id, record(1, 0, validation=loss))

    def compare(*arguments: str) -> Result:
        where = ["--redis-url", redis_urls[0], "--blob-url", redis_urls[1]]
        return CliRunner().invoke(cli, ["compare", *arguments, *where])

    wrong = compare("judged", "regression", "--metric", "acuracy").exception
    assert isinstance(wrong, ConfigError)
    assert "no run has acuracy; there is accuracy" in str(wrong)
    assert str(wrong).endswith("; did you mean accuracy?")
    assert compare("judged", "--metric", "accuracy").exit_code == 0
    # Without a name, what the runs have.
    found = json.loads(compare("regression", "--json").output)
    assert (found["metric"], found["runs"][0]["value"]) == ("loss", 0.5)
    assert json.loads(compare("judged", "regression", "--json").output)["metric"] == "accuracy"


def test_a_sweep_refuses_such_a_metric_before_it_trains() -> None:
    done = CliRunner().invoke(cli, ["sweep", "mnist-3v7", "--metric", "acuracy"])
    assert isinstance(done.exception, ConfigError)
    assert "did you mean accuracy" in str(done.exception)


def try_task(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fl_queue", "try-task", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, cwd=folder)


def test_a_task_is_tried_without_redis(tmp_path: Path) -> None:
    done = try_task(
        "mnist-3v7",
        "--json",
        "--set",
        "update.codec=int8",
        "--set",
        "train.epochs=2",
        folder=tmp_path,
    )

    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert (found["parameters"], found["model_bytes"]) == (785, 3140)
    assert found["update_bytes"] == 785 + 4 * 5  # A scale for the bias, four for the weights.
    assert found["num_examples"] >= 40
    assert found["trained"]["accuracy"] > found["base"]["accuracy"]
    assert found["peak_bytes"] > 50e6
    assert "epoch 2 of 2: accuracy" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_own_task_is_imported_from_here_and_a_bad_update_named(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from fl_queue.tasks.mnist import ThreesAndSevens\nclass Mine(ThreesAndSevens): pass\n"
    )
    done = try_task(
        "mnist-3v7",
        "--set",
        "run.task=mine:Mine",
        "--set",
        "aggregation.limit=0.0001",
        folder=tmp_path,
    )

    assert done.returncode == 3
    assert "more than aggregation.limit" in done.stderr
    assert "785 numbers" in done.stdout
