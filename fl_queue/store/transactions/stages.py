"""Transactions on secure rounds: each of their records is frozen once, by the aggregator that owns the round."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

from redis.client import Pipeline

from fl_queue.protocol.events import Event
from fl_queue.protocol.state import RoundPhase
from fl_queue.store import Incarnation, Store, keyspace
from fl_queue.store.jobs import dispatch
from fl_queue.store.jobs.dispatch import JobTicket


def freeze(
    store: Store,
    incarnation: Incarnation,
    record: str,
    fields: Mapping[str, str],
    tickets: Sequence[JobTicket] = (),
    event: Event | None = None,
) -> bool:
    """
    Write a record's digest into an open round, with what follows from it, if it has none.

    Args:
        incarnation: The aggregator's claim on the round.
        record: Field of the digest: ``roster``, ``survivors`` or ``confirmations``.
        fields: Of the round's hash, the digest among them.
        tickets: Jobs that take the place of their clients' jobs.
        event: For the run's stream.

    Returns:
        False: the round has ended, another aggregator owns it, or it has such a record.
    """
    run, number = incarnation.run, incarnation.round
    key = keyspace.round_(run, number)

    def write(pipe: Pipeline) -> None:
        pipe.hset(key, mapping=cast(dict[Any, Any], fields))
        for ticket in tickets:
            pipe.hset(keyspace.round_jobs(run, number), ticket.who, ticket.to_json())
            dispatch.publish(ticket, pipe, store.control.redis)
        if event is not None:
            store.control.events.add(run, event, pipe)

    def body(pipe: Pipeline) -> Callable[[], None] | None:
        names = ["state", "fence", "claimed_by", record]
        found = cast("list[bytes | None]", pipe.hmget(key, names))
        state, fence, owner, digest = ((value or b"").decode(errors="replace") for value in found)
        is_ours = (fence, owner) == (str(incarnation.fence), incarnation.token)
        if state != RoundPhase.open or not is_ours or digest:
            return None
        return partial(write, pipe)

    watched = [key, keyspace.round_jobs(run, number)] if tickets else [key]
    return store.control.transact(watched, body)
