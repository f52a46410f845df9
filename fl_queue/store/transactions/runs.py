"""Transactions on runs: created, continued, stopped and reopened."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from redis.client import Pipeline

from fl_queue.common.safe_json import dumps
from fl_queue.protocol.events import Event, RunResumed
from fl_queue.protocol.state import RunPhase
from fl_queue.store import RunState, Store, as_text, keyspace, parse_run_state
from fl_queue.store.jobs import dispatch
from fl_queue.store.jobs.dispatch import JobTicket
from fl_queue.store.transactions import confirmed_changes

#: Fields of a run that decide its next step. Fewer are not enough: a delayed process would open a second
#: closing evaluation, or complete a run that a command has continued meanwhile. The population decides
#: which share of split data a client has, and the panel who is asked for a step of a fit. A version and a
#: segment are named by their digests, too: a failover may have lost those that were seen, and others have
#: their numbers by now.
DECIDING = (
    "round",
    "version",
    "digest",
    "server_state",
    "evaluated_version",
    "rounds_wanted",
    "segment",
    "config_digest",
    "population",
    "panel",
)


class Writes(Protocol):
    """Further writes of a transaction."""

    def write(self, store: Store, run: str, pipe: Pipeline) -> None:
        """Add them."""


@dataclass(frozen=True)
class Continuation:
    """
    The changes that continue a run.

    Args:
        fields: Of the run's hash.
        segments: All config segments.
        event: For the run's stream.
        newest: Entry of the newest version; None: unchanged.
        branch: Writes of an older version that the run goes on from.
    """

    fields: Mapping[str, str]
    segments: Sequence[Mapping[str, Any]]
    event: Event
    newest: Mapping[str, Any] | None = None
    branch: Writes | None = None


def is_as_seen(pipe: Pipeline, state: RunState) -> bool:
    """Whether a training run is unchanged since a decision about it began; ``pipe`` watches its hash."""
    raw = as_text(cast(dict[bytes, bytes], pipe.hgetall(keyspace.run(state.run_id))))
    if "state" not in raw:
        return False
    now = parse_run_state(state.run_id, raw)
    return now.active and all(getattr(now, name) == getattr(state, name) for name in DECIDING)


def create(
    store: Store,
    run: str,
    fields: Mapping[str, str],
    segment: Mapping[str, Any],
    event: Event,
) -> bool:
    """
    Write the keys of a new run, unless its name (``fields["name"]``) is taken.

    Returns:
        Whether the name belongs to this run now.
    """
    name = fields["name"]

    def body(pipe: Pipeline) -> Callable[[], None] | None:
        if pipe.hexists(keyspace.RUNS, name):
            return None

        def write() -> None:
            pipe.hset(keyspace.RUNS, name, run)
            pipe.hset(keyspace.run(run), mapping=cast(dict[Any, Any], fields))
            pipe.set(keyspace.config(run), dumps([segment]))
            store.control.events.add(run, event, pipe)

        return write

    # After a lost reply the name is taken by this very run.
    return store.control.transact([keyspace.RUNS], body) or store.control.runs.id_of(name) == run


def continue_run(
    store: Store,
    run: str,
    decide: Callable[[RunState, list[dict[str, Any]], bytes | None], Continuation],
    by: str,
) -> bool:
    """
    Continue a run from its newest version.

    Args:
        decide: Takes the run's state, its config segments and the entry of its newest version, all read
            under WATCH: earlier reads may belong to another round or segment. May raise.
        by: Token of the command.

    Returns:
        Whether it was written; False also when the run is gone.
    """

    def body(pipe: Pipeline) -> confirmed_changes.Change | None:
        raw = as_text(cast(dict[bytes, bytes], pipe.hgetall(keyspace.run(run))))
        if "state" not in raw:
            return None
        state = parse_run_state(run, raw)
        segments = json.loads(cast("bytes | None", pipe.get(keyspace.config(run))) or b"[]")
        newest = cast("bytes | None", pipe.hget(keyspace.versions(run), str(state.version)))
        found = decide(state, segments, newest)

        def write() -> None:
            pipe.hset(keyspace.run(run), mapping=cast(dict[Any, Any], found.fields))
            pipe.set(keyspace.config(run), dumps(found.segments))
            if found.newest is not None:
                pipe.hset(keyspace.versions(run), str(state.version), dumps(found.newest))
            if found.branch is not None:
                found.branch.write(store, run, pipe)

        return confirmed_changes.Change(found.event, write)

    watched = [
        keyspace.run(run),
        keyspace.config(run),
        keyspace.versions(run),
        keyspace.history(run),
    ]
    return confirmed_changes.decide(store, run, watched, body, by)


def set_fields(
    store: Store,
    state: RunState,
    fields: Mapping[str, str],
    event: Event,
    by: str = "",
) -> bool:
    """
    Set fields of a training run, with an event, if the run is unchanged.

    Args:
        by: Token of the command, see ``confirmed_changes``.
    """
    key = keyspace.run(state.run_id)

    def body(pipe: Pipeline) -> confirmed_changes.Change | None:
        if not is_as_seen(pipe, state):
            return None
        return confirmed_changes.Change(
            event, lambda: pipe.hset(key, mapping=cast(dict[Any, Any], fields))
        )

    return confirmed_changes.decide(store, state.run_id, [key], body, by)


def set_tags(store: Store, state: RunState, tags: str, event: Event, by: str) -> bool:
    """
    Replace a run's tags, with an event, if they are as they were seen, whatever else the run does.

    Args:
        tags: JSON.
        by: Token of the command, see ``confirmed_changes``.
    """
    key, seen = keyspace.run(state.run_id), dumps(dict(state.tags))

    def body(pipe: Pipeline) -> confirmed_changes.Change | None:
        raw = cast("bytes | None", pipe.hget(key, "tags")) or b"{}"
        if not pipe.exists(key) or dumps(json.loads(raw)) != seen:
            return None
        return confirmed_changes.Change(event, lambda: pipe.hset(key, "tags", tags))

    return confirmed_changes.decide(store, state.run_id, [key], body, by)


def reopen(store: Store, run: str, states: Collection[str], by: str) -> bool:
    """
    Set a run that has ended back to training.

    Args:
        states: Only from one of these states.
        by: Token of the command.

    Returns:
        False when it is in another state by now.
    """
    key = keyspace.run(run)

    def body(pipe: Pipeline) -> confirmed_changes.Change | None:
        found = cast(list["bytes | None"], pipe.hmget(key, ["state", "version"]))
        state, version = ((raw or b"").decode() for raw in found)
        if state not in states:
            return None
        fields = {"state": RunPhase.training, "reason": "", "abandoned": "0", "waited_s": "0"}
        return confirmed_changes.Change(
            RunResumed(version=int(version) if version else None),
            lambda: pipe.hset(key, mapping=cast(dict[Any, Any], fields)),
        )

    return confirmed_changes.decide(store, run, [key], body, by)


def publish_evaluation(store: Store, ticket: JobTicket) -> bool:
    """
    Publish the evaluation of a version, unless it was published before; returns whether it was now.

    Nothing is written of a run that has been deleted meanwhile, or of a version that a failover has lost.
    """
    key, version = keyspace.evaluations(ticket.run), str(ticket.number)
    versions = keyspace.versions(ticket.run)

    def body(pipe: Pipeline) -> Callable[[], None] | None:
        if not pipe.hexists(versions, version) or pipe.hexists(key, version):
            return None

        def write() -> None:
            pipe.hset(key, version, ticket.to_json())
            dispatch.publish(ticket, pipe, store.control.redis)

        return write

    return store.control.transact([key, versions], body)


def write_site_report(
    store: Store,
    run: str,
    client: str,
    report: str,
    is_expected: Callable[[bytes | None], bool],
    ticket: JobTicket | None = None,
    event: Event | None = None,
) -> bool:
    """
    Replace a site's record in the comparison before round 1, while the run is training.

    Args:
        report: The new record, JSON.
        is_expected: Whether the recorded one is the one that the change was decided on.
        ticket: Job to publish with it.
        event: For the run's stream.
    """
    key = keyspace.sites(run)

    def body(pipe: Pipeline) -> Callable[[], None] | None:
        raw = cast("bytes | None", pipe.hget(key, client))
        if (
            not is_expected(raw)
            or pipe.hget(keyspace.run(run), "state") != RunPhase.training.encode()
        ):
            return None

        def write() -> None:
            pipe.hset(key, client, report)
            if ticket is not None:
                dispatch.publish(ticket, pipe, store.control.redis)
            if event is not None:
                store.control.events.add(run, event, pipe)

        return write

    return store.control.transact([key, keyspace.run(run)], body)
