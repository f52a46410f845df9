"""Rounds and test results written to the store without workers, for tests of their readers."""

from __future__ import annotations

from fl_queue.protocol.records import RoundRecord
from fl_queue.store import Store, keyspace


def add_rounds(store: Store, run: str, *records: RoundRecord) -> None:
    """End rounds as the commit script does: a record, then an event."""
    for record in records:
        store.control.redis.rpush(keyspace.history(run), record.to_json())
        store.control.events.add(run, {"event": f"round_{record.outcome}", "round": record.round})


def add_score(store: Store, run: str, version: int, accuracy: float) -> None:
    """Store a finished test of a version."""
    finished = {"accuracy": accuracy}
    store.control.evaluations.set(run, version, {"state": "done", "finished": finished})
