"""Whole runs of Flower clients: real workers, killed or not, sites and pool, and what sites answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="needs the extra flower; make test-flower")

from fl_queue import metrics
from fl_queue.reporting import rounds_table
from tests.support.federation import Federation, wait_for

pytestmark = pytest.mark.slow  # Whole runs of real workers, for an extra that the suite lacks.

APPS = "tests.flower.apps"
CLIENTS = 2
#: ``*`` is what a module defines, classes and functions: an app, an object of flwr's class, is named.
ALLOW = f"{APPS}:*,{APPS}:app"
TRAIN = ("train.batch_size=20", "train.learning_rate=0.3", "train.epochs=1", "run.rounds=3")
POOL = ("clients.kind=simulation", "clients.count=2", "clients.processes=1")


def settings(attribute: str, *overrides: str) -> tuple[str, ...]:
    return (f"run.task=flower:{APPS}:{attribute}", "round.cohort=2", *TRAIN, *overrides)


def test_two_sites_learn_together(federation: Federation) -> None:
    run = federation.begin("digits", *settings("client_fn"))

    assert federation.finish(run).state == "completed"
    records = federation.committed(run)
    assert [sorted(record.weights.values()) for record in records] == [[600, 600]] * 3
    assert metrics.finish(records[1].train) == {"round": 2.0}
    validated = rounds_table.validation(federation.store.control.history.records(run))
    assert validated[3]["accuracy"] > 0.8 > 0.3 > validated[0]["accuracy"]
    assert validated[3]["loss"] < validated[0]["loss"]


def test_a_client_killed_while_it_trains_changes_no_bit(
    federation: Federation, tmp_path: Path
) -> None:
    mark, calm = tmp_path / "killed", tmp_path / "calm"
    calm.touch()
    undisturbed = federation.digests_of("kill", *settings("killed_once", f"task.mark={calm}"))

    run = federation.begin("kill", *settings("killed_once", f"task.mark={mark}"))

    assert federation.finish(run).state == "completed"
    assert mark.exists()
    assert federation.trained(run) > 6
    assert federation.free(run) == undisturbed


def test_an_app_with_messages_learns_in_a_pool(federation: Federation) -> None:
    federation.start("pool", "--processes", "1")
    wait_for("the pool", lambda: len(federation.store.control.workers.living()) == 5, 60)

    run = federation.begin("pool", *settings("app", f"task.flower_model={APPS}:Net", *POOL))

    assert federation.finish(run).state == "completed"
    assert (
        rounds_table.validation(federation.store.control.history.records(run))[3]["accuracy"] > 0.7
    )
    federation.stop("pool")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("shape", "returned as array 0 one of shape (3, 2), and was given (2, 3)"),
        ("undefined", "tensor '0' holds nan"),
    ],
)
def test_a_wrong_answer_is_a_receipt_with_the_reason(
    federation: Federation, answer: str, words: str
) -> None:
    overrides = (f"task.flower_model={APPS}:two_arrays", f"task.answer={answer}")
    run = federation.begin(
        answer, *settings("answers", *overrides, "round.deadline_s=5", "run.rounds=1")
    )

    assert federation.finish(run).state == "failed"
    records = federation.store.control.history.records(run)
    rejections = [json.dumps(found) for record in records for found in record.rejected.values()]
    assert rejections == [found for found in rejections if words in found] != []
