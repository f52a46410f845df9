"""Start and continue runs. Rounds are opened by ``lifecycle.advance``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fl_queue.common import failpoints
from fl_queue.common.safe_json import dumps, printable
from fl_queue.config import metric_choice
from fl_queue.config.run_config import RunConfig, changed_fields
from fl_queue.config.schema import is_fixed
from fl_queue.coordinator.rounds import branching, stage_words, statement_signing
from fl_queue.errors import ConfigError, MessageError, RunFailed, RunStateError, UnknownRun
from fl_queue.protocol import events, identifiers, statements
from fl_queue.protocol.records import Purpose, digest_of, updates_in
from fl_queue.protocol.state import RunPhase
from fl_queue.store import RunState, Store
from fl_queue.store.transactions import confirmed_changes
from fl_queue.store.transactions import runs as transactions
from fl_queue.store.transactions.branches import Branch
from fl_queue.store.transactions.runs import Continuation


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


#: What a run does.
TRAINING, EVALUATING = "training", "evaluating"
#: Where none of its rounds is open.
BETWEEN = "between rounds"


def current_config(store: Store, run: str, segment: int | None = None) -> RunConfig:
    """
    A run's recorded config: the newest segment, or the one a round was opened with.

    Raises:
        UnknownRun: The run is gone.
        MessageError: The recorded config is unreadable.
        ConfigError: The recorded config is not valid.
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


def check_is_model(store: Store, state: RunState) -> None:
    """Raises RunStateError: The run is an analysis, which has a result and no model."""
    if current_config(store, state.run_id).analysis is not None:
        raise RunStateError(
            state.name, f"is an analysis of tables; see `fl-queue result {state.name}`"
        )


def check_goes_back(state: RunState, config: RunConfig) -> None:
    """Raises RunStateError: The config is of an analysis, whose versions are as many as its steps."""
    if config.analysis is not None:
        raise RunStateError(
            state.name,
            "is an analysis, which does not go back to an earlier step; start another one with --run NAME",
        )


def start_run(
    store: Store,
    name: str,
    config: RunConfig,
    rounds: int,
    initial: Mapping[str, Any] | None = None,
    from_version: int | None = None,
) -> RunState:
    """
    Create a run, or continue the one of that name from its newest version, or an older one.

    ``rounds_wanted`` is set to the newest version plus ``rounds``, so a repeated call adds nothing; of an analysis
    to the number of its steps.

    Args:
        name: Letters, digits and dashes.
        rounds: Rounds to commit from here on.
        initial: Digest and size of an initial model that is on the data server already.
        from_version: The version of a run that is there to go on from; None: the newest.

    Raises:
        UnknownRun, UnknownVersion: There is none to go on from.
        ConfigError: The name is not allowed, the config changes a field that a run keeps, or names a
            metric that is not reported.
        RunStateError: The run is training already.
    """
    identifiers.check_run_name(name)
    metric_choice.check_config(config)
    rounds = _versions_of(config, rounds)
    by = confirmed_changes.new_token()
    while True:
        existing = store.control.runs.id_of(name)
        if existing is None and from_version is not None:
            raise UnknownRun(name, list(store.control.runs.names()))
        if existing is not None:
            history = store.control.history.records(existing)
            metric_choice.check(config, metric_choice.of_history(history))
            known = store.control.runs.get(existing)
            metric_choice.check_declared(config, known.metrics if known is not None else ())
        if existing is None:
            done = _create(store, name, config, rounds, initial)
        else:
            beginning = _Beginning(initial, from_version)
            done = _continue(store, existing, config, rounds, beginning, by)
        if done:
            failpoints.failpoint("run.created")
            state = find_run(store, name)
            store.control.enrolments.pins.require(state.run_id, config.security.require_enrolment)
            return state


def _versions_of(config: RunConfig, rounds: int) -> int:
    """Versions that are made from version 0 on: steps of an analysis, none of an evaluation, else the given rounds."""
    if config.run.purpose == "evaluate":
        return 0
    return rounds if config.analysis is None else config.analysis.steps


def _create(
    store: Store, name: str, config: RunConfig, rounds: int, initial: Mapping[str, Any] | None
) -> bool:
    run = identifiers.new_run_id(name)
    made = {"from_round": 0, "config": config.record()}
    first = statement_signing.segment(store, run, name, 0, made, initial)

    fields = _first_state(store, name, config, rounds, initial)
    event = events.RunCreated(rounds=rounds)
    is_ours = transactions.create(store, run, fields, first, event)
    if is_ours and statements.SIGNATURE in first:
        store.control.enrolments.pins.note_signed(run)
    return is_ours


def _first_state(
    store: Store, name: str, config: RunConfig, rounds: int, initial: Mapping[str, Any] | None
) -> dict[str, str]:
    return {
        "name": name,
        "state": RunPhase.training,
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
        "counted_from": "0",
        "created_at": f"{store.control.now():.3f}",
    }


@dataclass(frozen=True)
class _Beginning:
    """
    What a run begins or goes on with.

    Args:
        initial: Record of an initial model, for a run without a version.
        version: An older version; None: the newest.
    """

    initial: Mapping[str, Any] | None
    version: int | None

    def branch(self, store: Store, state: RunState, config: RunConfig) -> Branch | None:
        """
        The writes that go back to the version; None: it is the newest.

        Raises:
            UnknownVersion: It is not there.
            RunStateError: The run is an analysis, whose versions are as many as its steps.
        """
        if self.version is None or self.version == state.version:
            return None
        check_goes_back(state, config)
        reason = f"goes on from version {self.version}"
        return branching.branch(store, state, config, self.version, reason)


def _continue(
    store: Store, run: str, config: RunConfig, rounds: int, beginning: _Beginning, by: str
) -> bool:
    record = config.record()
    statement_signing.check_key(store, run)

    def decide(
        state: RunState, segments: list[dict[str, Any]], newest: bytes | None
    ) -> Continuation:
        if state.active:
            raise _Trains
        changed = _changed_fields(state, segments[-1]["config"], record)
        if changed:
            segments.append({"from_round": state.round + 1, "config": record})
        given = beginning.initial if state.version is None else None
        branch = beginning.branch(store, state, config)
        newest_version = branch.number if branch else state.version or 0
        is_older = not any(statements.SIGNATURE in found for found in segments)
        segments[-1] = _signed(store, state, len(segments) - 1, segments[-1], record, given)
        adopted = _adopted(store, state, newest) if is_older and branch is None else None
        fields = {
            "state": RunPhase.training,
            "reason": "",
            "abandoned": "0",
            "waited_s": "0",
            # An analysis has as many steps as it needs, and no more; a fit may have had its result earlier.
            "rounds_wanted": str(
                state.rounds_wanted if config.analysis else newest_version + rounds
            ),
            "counted_from": str(newest_version),
            "segment": str(len(segments) - 1),
            **({"initial": dumps(given)} if given else {}),
            "config_digest": digest_of(record),
        }
        more = int(fields["rounds_wanted"]) - newest_version if config.analysis else rounds
        event = events.RunContinued(rounds=more, changed=changed)
        return Continuation(fields, segments, event, adopted, branch)

    try:
        return transactions.continue_run(store, run, decide, by)
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
    The newest segment of a run's config, signed anew: the operator who continues the run has just given it.

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


def _adopted(store: Store, state: RunState, raw: bytes | None) -> dict[str, Any] | None:
    """The entry of the newest version with a signature, of a run that is older than the operator's key."""
    if state.version is None or raw is None:
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
    """Describe the newest version of a run: ``at version 3``."""
    return "before its version 0 was made" if version is None else f"at version {version}"


def describe_state(store: Store, state: RunState) -> str:
    """Describe the activity of a run: ``is training: round 3, 2 of 4 updates in, quorum 3``."""
    if not state.active:
        tail = f" ({state.reason})" if state.reason else ""
        return f"is {state.state} {at_version(state.version)}{tail}"
    current, doing = store.control.rounds.newest_open(state), activity(store, state)
    if current is None:
        return f"is {doing}: {BETWEEN}{reason_found(store, state)}"
    receipts = store.control.receipts.of_round(state.run_id, state.round)
    received = updates_in(current.cohort, receipts)
    what = {
        Purpose.initialise: f"making version 0 on {', '.join(current.cohort)}",
        Purpose.train: f"round {state.round}",
        Purpose.evaluate: "at all sites" if doing == EVALUATING else "closing evaluation",
        Purpose.sums: f"step {(state.version or 0) + 1} of at most {state.rounds_wanted}",
    }[current.purpose]
    if current.secure is not None:
        what = f"secure {what}"
    return f"is {doing}: {what}, {stage_words.progress(store, state.run_id, current, received)}"


def activity(store: Store, state: RunState) -> str:
    """What a run does, by its config: ``training``, ``evaluating``, or ``computing`` and the name of its analysis."""
    try:
        config = current_config(store, state.run_id)
    except (
        UnknownRun,
        MessageError,
        ConfigError,
    ):  # It is deleted just now, or damaged: others report that.
        return TRAINING
    if config.analysis is not None:
        return f"computing {config.run.task}"
    return EVALUATING if config.run.purpose == "evaluate" else TRAINING


def reason_found(store: Store, state: RunState) -> str:
    """Why a run waits, with the age of the reason: the process that recorded it may be gone."""
    if not state.reason:
        return ""
    age_s = max(0.0, store.control.now() - state.reason_at)
    return f": {state.reason}" + (f" (found {age_s:.0f} s ago)" if state.reason_at else "")


def raise_unless_completed(state: RunState) -> None:
    """
    Check that a run has completed.

    Raises:
        RunFailed: It failed, or was cancelled.
    """
    if state.state == RunPhase.failed:
        raise RunFailed(state.name, f"failed: {state.reason}")
    if state.state == RunPhase.cancelled:
        raise RunFailed(
            state.name,
            f"{state.reason} {at_version(state.version)}; go on with `fl-queue resume {state.name}`",
        )


def set_state(
    store: Store,
    state: RunState,
    new: str,
    reason: str,
    event: type[events.RunChanged],
    by: str = "",
) -> bool:
    """
    Change a training run's state, if it is still as it was seen; returns whether it was.

    Args:
        by: Token of the command that does it, which has to know whether it did; see ``confirmed_changes``.
    """
    found_at = f"{store.control.now():.3f}"
    fields = {"state": new, "reason": reason, "reason_at": found_at}
    described = event(reason=reason, version=state.version)
    return transactions.set_fields(store, state, fields, described, by)
