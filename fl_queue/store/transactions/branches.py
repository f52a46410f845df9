"""Transactions that make an older version of a run the newest one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from redis.client import Pipeline

from fl_queue.common.safe_json import dumps
from fl_queue.protocol.events import Event
from fl_queue.protocol.records import RoundRecord
from fl_queue.store import RunState, Store, keyspace
from fl_queue.store.transactions import confirmed_changes
from fl_queue.store.transactions.runs import is_as_seen


@dataclass(frozen=True)
class Branch:
    """
    The writes of a branch.

    Args:
        number: Of the new version.
        entry: In the run's list of versions.
        record: For the history.
        fields: Of the run's hash; ``server_state`` as a mapping.
        accepted: Client that keeps something -> round and digest of the update whose state still counts.
        forgotten: Clients whose state counts no longer, sorted.
        event: For the run's stream.
    """

    number: int
    entry: Mapping[str, Any]
    record: RoundRecord
    fields: Mapping[str, Any]
    accepted: Mapping[str, tuple[int, str]]
    forgotten: Sequence[str]
    event: Event

    def keys(self, run: str) -> list[str]:
        """The keys that the branch was decided by, besides the run's hash."""
        return [keyspace.versions(run), keyspace.history(run), keyspace.accepted(run)]

    def write(self, store: Store, run: str, pipe: Pipeline) -> None:
        """Add the writes to a transaction."""
        fields = {**self.fields, "server_state": dumps(self.fields["server_state"])}
        pipe.hset(keyspace.run(run), mapping=cast(dict[Any, Any], fields))
        pipe.hset(keyspace.versions(run), str(self.number), dumps(self.entry))
        pipe.rpush(keyspace.history(run), self.record.to_json())
        # The same of the newest backup stays: a run may be restored from that.
        if self.forgotten:
            pipe.hdel(keyspace.accepted(run), *self.forgotten)
        for client, (number, digest) in sorted(self.accepted.items()):
            entry = dumps({"round": number, "digest": digest})
            pipe.hset(keyspace.accepted(run), client, entry)
        store.control.events.add(run, self.event, pipe)


def restore_at_end(store: Store, state: RunState, branch: Branch) -> bool:
    """
    Make an older version the newest one of a run that has nothing left to train, unless the run has changed.

    It needs no closing evaluation: the validation of the older version chose it.
    """
    run = state.run_id
    last = {"rounds_wanted": str(branch.number), "evaluated_version": str(branch.number)}

    def body(pipe: Pipeline) -> confirmed_changes.Change | None:
        if not is_as_seen(pipe, state):
            return None

        def write() -> None:
            branch.write(store, run, pipe)
            pipe.hset(keyspace.run(run), mapping=cast(dict[Any, Any], last))

        return confirmed_changes.Change(None, write)

    return confirmed_changes.decide(store, run, [keyspace.run(run), *branch.keys(run)], body)
