"""Asynchronous rounds with real workers, one of them slow, and processes killed: nothing twice, nothing lost."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from fl_queue import kept, verify
from fl_queue.records import RoundRecord
from fl_queue.store import RunState
from tests.federation import Federation, wait_for

#: One client takes its time; real training is some milliseconds.
TASK = """
import time
from fl_queue.tasks.mnist import ThreesAndSevens

class Paced(ThreesAndSevens):
    def train(self, model, data, context, on_epoch):
        time.sleep(self.options["slow_s"] if context.client == "site-3" else 0.05)
        return super().train(model, data, context, on_epoch)
"""
ASYNC = (
    "run.task=paced:Paced", "round.mode=async", "round.cohort=1.0", "round.buffer=2", "task.slow_s=1.0",
    "train.epochs=1", "model.keep_updates=true", "model.keep_versions=0", "run.evaluate_every=0",
    "round.max_staleness=50",
)  # fmt: skip
#: Where an aggregator is killed; what the suite leaves to `make test-slow` is marked.
QUICK = ("update.received", "round.committed")
AGGREGATOR = [
    *QUICK,
    *(
        pytest.param(point, marks=pytest.mark.slow)  # Like those above, between other steps.
        for point in (
            "aggregator.claimed",
            "update.taken",
            "round.decided",
            "model.published",
            "checkpoint.written",
            "round.opened",
            "round.advanced",
            "round.discarded",
        )
    ),
]
CLIENT = [
    ("update.pushed", "site-3_"),
    *(
        pytest.param(*case, marks=pytest.mark.slow)  # Before the outbox has it, and other clients.
        for case in (("client.started", "site-1_"), ("client.trained", "site-3_"), ("outbox.written", "site-3_"), ("update.pushed", "site-1_"))
    ),
]  # fmt: skip


CLIENTS = 3
ALLOW = "paced:Paced"


def environment(folder: Path) -> dict[str, str]:
    (folder / "paced.py").write_text(TASK)
    return {"PYTHONPATH": f"{folder}:{Path.cwd()}"}


def end(federation: Federation, run: str) -> tuple[RunState, list[RoundRecord]]:
    """Wait until a run has ended by itself, and see that it is in order."""
    state = federation.finish(run, 90)
    committed = federation.committed(run)
    assert state.state == "completed"
    assert [record.version for record in committed] == list(range(1, len(committed) + 1))
    assert all(len(record.accepted) == 2 for record in committed)
    # An update is named by its bits and its token; no two jobs make the same bits.
    merged = Counter(item for record in committed for item in record.accepted.items())
    tokens = Counter(
        kept.read(federation.redis.state_dir, run, record.round, *item)[0].token
        for record in committed
        for item in record.accepted.items()
    )
    assert set(merged.values()) == set(tokens.values()) == {1}
    verdicts = verify.verify(federation.store, state, federation.redis.state_dir)
    assert {verdict.result for verdict in verdicts} == {"same"}
    federation.free(run)
    return state, committed


def trained(federation: Federation, run: str) -> Counter[tuple[str, int]]:
    """(client, round of its job) -> how often it began to train."""
    return Counter(
        (client, event["round"])
        for client in federation.clients
        for event in federation.client_events(client)
        if event["event"] == "training" and event["run"] == run
    )


def test_versions_are_made_without_the_slow_client_and_it_still_counts(
    federation: Federation,
) -> None:
    run = federation.begin("slow", *ASYNC, "run.rounds=8")
    _, committed = end(federation, run)

    first = next(record for record in committed if "site-3" in record.accepted)
    assert first.round > 1
    assert first.staleness["site-3"] == first.base_version - first.carried["site-3"]["version"] > 0
    fast = [record for record in committed if record.round < first.round]
    assert all(record.staleness == {"site-1": 0, "site-2": 0} for record in fast)
    assert set(trained(federation, run).values()) == {1}


@pytest.mark.slow  # A worker notices every two seconds that its job is given up.
def test_a_client_that_is_always_too_slow_is_given_up_again_and_again(
    federation: Federation,
) -> None:
    run = federation.begin(
        "never", *ASYNC, "run.rounds=6", "round.max_staleness=1", "task.slow_s=600"
    )
    _, committed = end(federation, run)
    given_up = [record.round for record in committed if "site-3" in record.rejected]

    assert given_up == [2, 4, 6]
    assert "round.max_staleness = 1" in committed[1].rejected["site-3"]
    assert committed[2].carried == {}


@pytest.mark.parametrize("point", AGGREGATOR)
def test_an_aggregator_killed_at(federation: Federation, point: str) -> None:
    fired = federation.arm(point, "kill", "aggregator-")
    run = federation.begin("killed", *ASYNC, "run.rounds=4")
    wait_for(point, fired.exists)
    end(federation, run)

    assert set(trained(federation, run).values()) == {1}


@pytest.mark.parametrize(("point", "whose"), CLIENT)
def test_a_client_killed_at(federation: Federation, point: str, whose: str) -> None:
    fired = federation.arm(point, "kill", whose)
    run = federation.begin("killed", *ASYNC, "run.rounds=6")
    wait_for(point, fired.exists)
    end(federation, run)

    if point not in ("client.started", "client.trained"):
        assert set(trained(federation, run).values()) == {1}
