"""Records of rounds, and their writing to the store without workers, for tests of their readers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fl_queue.config import loading
from fl_queue.coordinator.rounds import runs
from fl_queue.protocol.events import ROUND_ENDS
from fl_queue.protocol.records import Outcome, Purpose, RoundRecord
from fl_queue.store import RunState, Store, keyspace


def sums(correct: int, wrong: int) -> dict[str, Any]:
    """Validation sums with the accuracy ``correct / (correct + wrong)`` and the loss 0.5."""
    examples = correct + wrong
    table = [[correct, wrong], [0, 0]]
    return {"num_examples": examples, "confusion": table, "loss_sum": 0.5 * examples}


def record(number: int, base: int, **changes: Any) -> RoundRecord:
    """A committed round of two clients that made the version after ``base``."""
    made = RoundRecord(
        round=number,
        purpose=Purpose.train,
        outcome=Outcome.committed,
        reason="quorum of 2 reached",
        base_version=base,
        base_digest=f"digest-{base}",
        version=base + 1,
        accepted={"hospital-a": "1", "hospital-b": "2"},
        validation=sums(8, 2),
        client_validation={"hospital-a": {"accuracy": 0.7}, "hospital-b": {"accuracy": 0.9}},
        elapsed_s=12.34,
    )
    return replace(made, **changes)


def abandoned(number: int, base: int, **changes: Any) -> RoundRecord:
    """A round of one client that was abandoned for want of a quorum."""
    return record(
        number,
        base,
        outcome=Outcome.abandoned,
        reason="quorum not reached [one of two]",
        version=None,
        accepted={"hospital-a": "1"},
        **changes,
    )


def closing(number: int, base: int, **changes: Any) -> RoundRecord:
    """The evaluation that closes a run, of the version ``base``."""
    return record(
        number, base, purpose="evaluate", outcome="evaluated", version=None, accepted={}, **changes
    )


def add_rounds(store: Store, run: str, *records: RoundRecord) -> None:
    """End rounds as the commit script does: a record, then an event."""
    for one in records:
        store.control.redis.rpush(keyspace.history(run), one.to_json())
        store.control.events.add(
            run, ROUND_ENDS[one.outcome](round=one.round, reason="", version=None)
        )


def add_score(store: Store, run: str, version: int, accuracy: float) -> None:
    """Store a finished test of a version."""
    finished = {"accuracy": accuracy}
    store.control.evaluations.set(run, version, {"state": "done", "finished": finished})


def start_scored_run(store: Store, name: str, accuracies: list[float], *overrides: str) -> RunState:
    """A run with a tested version for each accuracy, from version 1, and nothing held out."""
    loaded = loading.load("mnist-3v7", overrides, {})
    state = runs.start_run(store, name, loaded, 3)
    for number, accuracy in enumerate(accuracies, 1):
        add_rounds(store, state.run_id, record(number, number - 1, validation={}))
        add_score(store, state.run_id, number, accuracy)
    store.control.redis.hset(keyspace.run(state.run_id), "version", len(accuracies))
    return runs.find_run(store, name)
