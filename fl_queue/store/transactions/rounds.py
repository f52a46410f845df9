"""Transactions on rounds: opened with their jobs, and extended by further clients."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from redis.client import Pipeline

from fl_queue.protocol.events import Event
from fl_queue.protocol.records import Purpose
from fl_queue.protocol.state import RoundPhase
from fl_queue.store import RoundState, RunState, Store, keyspace
from fl_queue.store.jobs import dispatch
from fl_queue.store.jobs.dispatch import JobTicket
from fl_queue.store.transactions.runs import is_as_seen


@dataclass(frozen=True)
class RoundOpening:
    """
    A round to open.

    Args:
        number: Of the round.
        run_fields: Fields of the run's hash that change with it.
        fields: Of the round's hash.
        tickets: Jobs to publish.
        carried: Tickets of jobs at work that the round takes over.
        events: For the run's stream.
        shares: Parts the data are split into, recorded once for the run; None: not by this round.
    """

    number: int
    run_fields: Mapping[str, str]
    fields: Mapping[str, str]
    tickets: Sequence[JobTicket]
    carried: Sequence[JobTicket]
    events: Sequence[Event]
    shares: int | None = None


def open_round(store: Store, state: RunState, opening: RoundOpening, takes_over: bool) -> bool:
    """
    Open a run's next round, if the run is unchanged.

    Args:
        takes_over: The round takes over jobs of the last one, whose tickets the healer may replace.
    """
    run, number = state.run_id, opening.number

    def write(pipe: Pipeline) -> None:
        pipe.hset(keyspace.run(run), mapping=cast(dict[Any, Any], opening.run_fields))
        if opening.shares is not None:
            # Decided once: a client that joins later must not move samples between the parts.
            pipe.hsetnx(keyspace.run(run), "shares", opening.shares)
        pipe.hset(keyspace.round_(run, number), mapping=cast(dict[Any, Any], opening.fields))
        for ticket in opening.carried:
            pipe.hset(keyspace.round_jobs(run, number), ticket.who, ticket.to_json())
        _publish(store, pipe, opening.tickets)
        for event in opening.events:
            store.control.events.add(run, event, pipe)

    def body(pipe: Pipeline) -> Callable[[], None] | None:
        return partial(write, pipe) if is_as_seen(pipe, state) else None

    watched = [keyspace.run(run), keyspace.round_jobs(run, state.round)]
    return store.control.transact(watched if takes_over else watched[:1], body)


def extend(
    store: Store,
    state: RunState,
    current: RoundState,
    fields: Mapping[str, str],
    tickets: Sequence[JobTicket],
    event: Event,
    run_fields: Mapping[str, str] | None = None,
) -> bool:
    """
    Add clients to an open round, if its clients and the run are unchanged.

    Args:
        fields: Of the round's hash.
        tickets: Jobs of the new clients.
        event: For the run's stream.
        run_fields: Fields of the run's hash that change with it.
    """
    run, key = state.run_id, keyspace.round_(state.run_id, current.number)

    def write(pipe: Pipeline) -> None:
        if run_fields:
            pipe.hset(keyspace.run(run), mapping=cast(dict[Any, Any], run_fields))
        pipe.hset(key, mapping=cast(dict[Any, Any], fields))
        _publish(store, pipe, tickets)
        store.control.events.add(run, event, pipe)

    def body(pipe: Pipeline) -> Callable[[], None] | None:
        found = cast(list["bytes | None"], pipe.hmget(key, ["state", "cohort", "makers"]))
        is_same = found[0] == RoundPhase.open.encode() and (
            json.loads(found[2] or b"{}") == dict(current.makers)
            if current.purpose == Purpose.initialise
            else tuple(json.loads(found[1] or b"[]")) == current.cohort
        )
        return partial(write, pipe) if is_same and is_as_seen(pipe, state) else None

    return store.control.transact([keyspace.run(run), key], body)


def _publish(store: Store, pipe: Pipeline, tickets: Sequence[JobTicket]) -> None:
    for ticket in tickets:
        pipe.hset(keyspace.round_jobs(ticket.run, ticket.number), ticket.who, ticket.to_json())
        dispatch.publish(ticket, pipe, store.control.redis)
