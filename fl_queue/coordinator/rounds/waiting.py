"""Wait until the next round of a run can be opened, with the reason why it cannot be yet."""

from __future__ import annotations

from collections.abc import Mapping

from fl_queue.config.consistency import too_few_updates
from fl_queue.config.run_config import RunConfig
from fl_queue.coordinator.rounds.runs import set_state
from fl_queue.protocol.codecs import codec
from fl_queue.protocol.events import EvaluationSkipped, RunFailed, WaitingForClients
from fl_queue.protocol.state import RunPhase
from fl_queue.store import MEMORY_SHARE, RunState, Store
from fl_queue.store.transactions import runs as transactions
from fl_queue.strategies import get_strategy
from fl_queue.strategies.layouts import update_manifest

#: Paused clients that a reason names.
_NAMED = 5


def missing_clients_reason(
    config: RunConfig, asked: str, wanted: int, alive: int, left_out: str = ""
) -> str:
    """
    Why there are not enough clients for a round.

    Args:
        asked: The config's field that asks for them.
        wanted: How many it asks for.
        alive: How many are alive.
        left_out: Living clients that may not take part, and why.
    """
    if left_out:
        return f"{asked} wants {max(wanted, 1)} clients, and {alive} may take part; left out: {left_out}"
    if alive == 0:
        reason = "no client is alive; start one with `fl-queue worker client --client ID`"
        if config.security.require_enrolment:
            reason = "no enrolled client is alive (security.require_enrolment); enrol one with `fl-queue enroll CLIENT`"
        return reason
    return f"{asked} = {wanted}, but {alive} clients are alive; start more workers or lower {asked}"


def too_few_reason(config: RunConfig, cohort: int) -> str:
    """Why the quorum of a cohort is too small for the strategy; empty: it is not."""
    name = config.aggregation.strategy
    problem = too_few_updates(name, get_strategy(name, config.strategy), config.quorum_size(cohort))
    return f"{problem}, or start more workers" if problem else ""


def no_room_reason(store: Store, state: RunState, config: RunConfig, cohort: int) -> str:
    """Why the updates of a round, which the strategy needs at once, have no room; empty: they have."""
    strategy = get_strategy(config.aggregation.strategy, config.strategy)
    manifest = store.control.versions.manifest(state.run_id) if strategy.needs_all else None
    if manifest is None:
        return ""
    sent = update_manifest(strategy, manifest)
    needed = cohort * codec.encoded_nbytes(codec.encoding(config.update), sent)
    room = store.data.admission.room(config.redis.unmerged_bytes)
    if needed <= room:
        return ""
    return (
        f"{config.aggregation.strategy} needs the {cohort} updates of a round at once, {needed} bytes,"
        f" and {room} may lie on the data server; raise redis.unmerged_bytes to {needed} and the server's"
        f" maxmemory, if it has one, to {MEMORY_SHARE * needed}, or lower round.cohort"
    )


def wait_for_clients(
    store: Store,
    state: RunState,
    config: RunConfig,
    reason: str,
    missing: int,
    paused: Mapping[str, str],
    unanswered: int = 0,
) -> None:
    """
    Wait until there are enough clients for a round, without an end for those that are paused or busy.

    Args:
        reason: From ``missing_clients_reason``.
        missing: Number of clients that are missing.
        paused: Clients that might be selected if their sites had not paused them -> why.
        unanswered: Number of clients whose answer to the preflight is still awaited.
    """
    names = "".join(f"; {client} is {why}" for client, why in list(paused.items())[:_NAMED])
    # Paused clients come back, and clients that train for another run answer later: no reason to give up.
    wait(store, state, config, reason + names, gives_up=len(paused) + unanswered < missing)


def wait(
    store: Store,
    state: RunState,
    config: RunConfig,
    reason: str,
    gives_up: bool = True,
    fails: bool = True,
) -> None:
    """
    Record why no round can open; fail the run after the deadline.

    Args:
        gives_up: Whether the time is counted.
        fails: Whether the run fails at the deadline.
    """
    waited_s = store.control.runs.count_waiting(state.run_id) if gives_up else None
    deadline_s = config.round.deadline_s
    given_up = fails and waited_s is not None and waited_s >= deadline_s
    if given_up:
        reason = f"gave up after {deadline_s:g} s (round.deadline_s): {reason}"
    elif state.reason == reason:
        return
    set_state(
        store,
        state,
        RunPhase.failed if given_up else RunPhase.training,
        reason,
        RunFailed if given_up else WaitingForClients,
    )


def go_without_evaluation(store: Store, state: RunState, left_out: str) -> bool:
    """
    Complete a run without its closing evaluation, as no client may take part; the reason is recorded.

    Args:
        left_out: Living clients that may not take part, and why.
    """
    reason = "no closing evaluation: no client is alive that may take part"
    return _without_evaluation(
        store, state, reason + (f"; left out: {left_out}" if left_out else "")
    )


def go_without_clear_evaluation(store: Store, state: RunState) -> bool:
    """Complete a run of secure rounds without its closing evaluation, which would be in clear."""
    reason = (
        "no closing evaluation: the clients' metrics would travel in clear; each secure round has their sums, of the "
        "version that it began with"
    )
    return _without_evaluation(store, state, reason)


def _without_evaluation(store: Store, state: RunState, reason: str) -> bool:
    fields = {"evaluated_version": str(state.version), "not_evaluated": reason}
    event = EvaluationSkipped(version=state.version, reason=reason)
    return transactions.set_fields(store, state, fields, event)
