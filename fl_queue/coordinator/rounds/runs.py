"""
Starting and continuing runs. No rounds here: ``lifecycle.advance`` opens them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, cast

from redis.client import Pipeline

from fl_queue.common import failpoints
from fl_queue.common.safe_json import dumps, printable
from fl_queue.config import metric_choice
from fl_queue.config.run_config import RunConfig, changed_fields
from fl_queue.config.schema import is_fixed
from fl_queue.coordinator.rounds import confirmed_changes, statement_signing
from fl_queue.errors import ConfigError, MessageError, RunFailed, RunStateError, UnknownRun
from fl_queue.protocol import identifiers, statements
from fl_queue.protocol.records import digest_of, updates_in
from fl_queue.store import RunState, Store, as_text, keyspace, parse_run_state

#: Fields of a run that decide what comes next. Less is not enough: a caller that slept would open a
#: second closing evaluation, or complete a run that somebody has continued meanwhile.
#: Who is in the population decides which share of split data a client has.
DECIDING = ("round", "version", "evaluated_version", "rounds_wanted", "segment", "population")


def find_run(store: Store, name: str) -> RunState:
    """
    The living run of that name (or run id).

    Raises:
        UnknownRun: There is none.
    """
    run_id = store.control.runs.id_of(name)
    state = store.control.runs.get(run_id) if run_id else None
    if state is None:
        raise UnknownRun(name, list(store.control.runs.names()))
    return state


def current_config(store: Store, run: str, segment: int | None = None) -> RunConfig:
    """
    A run's recorded config: the newest segment, or the one a round was opened with.

    Raises:
        UnknownRun: The run is gone.
        MessageError, ConfigError: Somebody has changed the config.
    """
    found = recorded_config(store, run, segment)
    try:
        return RunConfig.from_dict(found)
    except (LookupError, TypeError, ValueError, AttributeError) as exc:
        why = printable(str(exc))[:200]
        raise MessageError(f"run {run}: its config is unreadable: {why}") from exc


def recorded_config(store: Store, run: str, segment: int | None = None) -> dict[str, Any]:
    """The same as Redis has it: its digest is what the operator signs. Raises UnknownRun."""
    segments = store.control.runs.config_segments(run)
    if not segments:
        raise UnknownRun(run, list(store.control.runs.names()))
    if segment is not None and not 0 <= segment < len(segments):
        raise MessageError(f"run {run}: its config has no segment {segment}")
    found: dict[str, Any] = segments[-1 if segment is None else segment]["config"]
    return found


def start_run(
    store: Store,
    name: str,
    config: RunConfig,
    rounds: int,
    initial: Mapping[str, Any] | None = None,
) -> RunState:
    """
    Create a run, or continue the one of that name from its newest version.

    ``rounds_wanted`` is set to the newest version plus ``rounds``, so a repeated call adds nothing.

    Args:
        name: Letters, digits and dashes.
        rounds: Rounds to commit from here on.
        initial: Digest and size of an initial model that is on the data server already.

    Raises:
        ConfigError: The name is not allowed, the config changes a field that a run keeps, or names a
            metric that is not reported.
        RunStateError: The run is training already.
    """
    if not identifiers.is_name(name):
        raise ConfigError(
            "--run", f"{name!r} is not a run name; use letters, digits and dashes, at most 63"
        )
    metric_choice.check_config(config)
    by = confirmed_changes.new_token()
    while True:
        existing = store.control.runs.id_of(name)
        if existing is not None:
            history = store.control.history.records(existing)
            metric_choice.check(config, metric_choice.of_history(history))
        if existing is None:
            done = _create(store, name, config, rounds, initial)
        else:
            done = _continue(store, existing, config, rounds, initial, by)
        if done:
            failpoints.failpoint("run.created")
            state = find_run(store, name)
            store.control.enrolments.pins.require(state.run_id, config.security.require_enrolment)
            return state


def _create(
    store: Store, name: str, config: RunConfig, rounds: int, initial: Mapping[str, Any] | None
) -> bool:
    run = identifiers.new_run_id(name)
    made = {"from_round": 0, "config": config.record()}
    first = statement_signing.segment(store, run, name, 0, made, initial)

    def body(pipe: Pipeline) -> Callable[[], None] | None:
        if pipe.hexists(keyspace.RUNS, name):
            return None

        def write() -> None:
            pipe.hset(keyspace.RUNS, name, run)
            pipe.hset(keyspace.run(run), mapping=_first_state(store, name, config, rounds, initial))
            pipe.set(keyspace.config(run), dumps([first]))
            store.control.events.add(run, {"event": "run_created", "rounds": rounds}, pipe)

        return write

    # A lost reply must not make our own run look like somebody else's.
    is_ours = store.control.transact([keyspace.RUNS], body) or store.control.runs.id_of(name) == run
    if is_ours and statements.SIGNATURE in first:
        store.control.enrolments.pins.note_signed(run)
    return is_ours


def _first_state(
    store: Store, name: str, config: RunConfig, rounds: int, initial: Mapping[str, Any] | None
) -> dict[Any, Any]:
    return {
        "name": name,
        "state": "training",
        "reason": "",
        "version": "",
        "digest": "",
        "round": "-1",
        "rounds_wanted": str(rounds),
        "abandoned": "0",
        "task": config.run.task,
        "segment": "0",
        "population": "[]",
        "initial": dumps(initial) if initial else "",
        "config_digest": digest_of(config.record()),
        "created_at": f"{store.control.now():.3f}",
    }


def _continue(
    store: Store,
    run: str,
    config: RunConfig,
    rounds: int,
    initial: Mapping[str, Any] | None,
    by: str,
) -> bool:
    record = config.record()
    statement_signing.check_key(store, run)

    def body(pipe: Pipeline) -> confirmed_changes.Change | None:
        # All of it is read under WATCH: what was read before may be of another round, or segment.
        raw = as_text(cast(dict[bytes, bytes], pipe.hgetall(keyspace.run(run))))
        if "state" not in raw:
            return None
        state = parse_run_state(run, raw)
        if state.active:
            raise _Trains
        segments = json.loads(cast("bytes | None", pipe.get(keyspace.config(run))) or b"[]")
        changed = _changed_fields(state, segments[-1]["config"], record)
        if changed:
            segments.append({"from_round": state.round + 1, "config": record})
        given = initial if state.version is None else None
        is_older = not any(statements.SIGNATURE in found for found in segments)
        segments[-1] = _signed(store, state, len(segments) - 1, segments[-1], record, given)
        newest = _adopted(store, state, pipe) if is_older else None
        fields: dict[Any, Any] = {
            "state": "training",
            "reason": "",
            "abandoned": "0",
            "waited_s": "0",
            "rounds_wanted": str((state.version or 0) + rounds),
            "segment": str(len(segments) - 1),
            **({"initial": dumps(given)} if given else {}),
            "config_digest": digest_of(record),
        }

        def write() -> None:
            pipe.hset(keyspace.run(run), mapping=fields)
            pipe.set(keyspace.config(run), dumps(segments))
            if newest is not None:
                pipe.hset(keyspace.versions(run), str(state.version), dumps(newest))

        return confirmed_changes.Change(
            {"event": "run_continued", "rounds": rounds, "changed": changed}, write
        )

    try:
        watched = [keyspace.run(run), keyspace.config(run), keyspace.versions(run)]
        return confirmed_changes.decide(store, run, watched, body, by)
    except _Trains:
        if confirmed_changes.was_made(store, run, by):
            return True
    state = find_run(store, run)
    if not state.active:
        return False
    raise RunStateError(
        state.name,
        f"{describe_state(store, state)}; attach to it with `fl-queue watch {state.name}`, or wait until it has ended",
    )


def _signed(
    store: Store,
    state: RunState,
    number: int,
    found: Mapping[str, Any],
    record: Mapping[str, Any],
    initial: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """
    The newest segment of a run's config, signed anew: whoever goes on with the run has just named its config.

    Args:
        found: As Redis has it, which may be of before there was a key.
        record: The config that was named, which does not differ from it.
        initial: The initial model that was named, of a run without a version.
    """
    if (
        initial is None
        and state.version is None
        and state.initial
        and statements.SIGNATURE in found
    ):
        return dict(found)  # Its signature covers the initial model it was begun with.
    made = {"from_round": found["from_round"], "config": dict(record)}
    return statement_signing.segment(store, state.run_id, state.name, number, made, initial)


def _adopted(store: Store, state: RunState, pipe: Pipeline) -> dict[str, Any] | None:
    """The entry of the newest version with a signature, of a run that is older than the operator's key."""
    if state.version is None:
        return None
    raw = cast("bytes | None", pipe.hget(keyspace.versions(state.run_id), str(state.version)))
    if raw is None:
        return None
    return statement_signing.adopted(
        store, state, json.loads(raw), store.control.versions.manifest(state.run_id)
    )


class _Trains(Exception):
    """A run that was to be continued is training."""


def _changed_fields(
    state: RunState, recorded: Mapping[str, Any], record: Mapping[str, Any]
) -> list[str]:
    changed = changed_fields(recorded, record)
    for field in changed:
        if is_fixed(field):
            raise ConfigError(
                field,
                f"run {state.name} keeps the value it was created with; set it back, or start a new run with --run NAME",
            )
    return changed


def at_version(version: int | None) -> str:
    """Where a run is, in words: ``at version 3``."""
    return "before its version 0 was made" if version is None else f"at version {version}"


def describe_state(store: Store, state: RunState) -> str:
    """What a run is doing, in words: ``is training: round 3, 2 of 4 updates in, quorum 3``."""
    if not state.active:
        tail = f" ({state.reason})" if state.reason else ""
        return f"is {state.state} {at_version(state.version)}{tail}"
    current = store.control.rounds.newest_open(state)
    if current is None:
        return f"is training: between rounds{reason_found(store, state)}"
    receipts = store.control.receipts.of_round(state.run_id, state.round)
    received = updates_in(current.cohort, receipts)
    what = {
        "initialise": f"making version 0 on {', '.join(current.cohort)}",
        "train": f"round {state.round}",
        "evaluate": "closing evaluation",
    }[current.purpose]
    return f"is training: {what}, {current.progress(received)}"


def reason_found(store: Store, state: RunState) -> str:
    """Why a run waits, with the age of the reason: whoever looked last may have gone since."""
    if not state.reason:
        return ""
    age_s = max(0.0, store.control.now() - state.reason_at)
    return f": {state.reason}" + (f" (found {age_s:.0f} s ago)" if state.reason_at else "")


def is_as_seen(pipe: Pipeline, state: RunState) -> bool:
    """Whether a training run still is where a decision about it began; ``pipe`` watches its hash."""
    raw = as_text(cast(dict[bytes, bytes], pipe.hgetall(keyspace.run(state.run_id))))
    if "state" not in raw:
        return False
    now = parse_run_state(state.run_id, raw)
    return now.active and all(getattr(now, name) == getattr(state, name) for name in DECIDING)


def raise_unless_completed(state: RunState) -> None:
    """
    Raises:
        RunFailed: It failed, or was cancelled.
    """
    if state.state == "failed":
        raise RunFailed(state.name, f"failed: {state.reason}")
    if state.state == "cancelled":
        raise RunFailed(
            state.name,
            f"{state.reason} {at_version(state.version)}; go on with `fl-queue resume {state.name}`",
        )


def set_state(
    store: Store, state: RunState, new: str, reason: str, event: str, by: str = ""
) -> bool:
    """
    Change a training run's state, if it is still as it was seen; returns whether it was.

    Args:
        by: Token of the command that does it, which has to know whether it did; see ``confirmed_changes``.
    """

    found_at = f"{store.control.now():.3f}"

    def body(pipe: Pipeline) -> confirmed_changes.Change | None:
        if not is_as_seen(pipe, state):
            return None
        fields = {"state": new, "reason": reason, "reason_at": found_at}
        return confirmed_changes.Change(
            {"event": event, "reason": reason, "version": state.version},
            lambda: pipe.hset(keyspace.run(state.run_id), mapping=cast(dict[Any, Any], fields)),
        )

    return confirmed_changes.decide(store, state.run_id, [keyspace.run(state.run_id)], body, by)
