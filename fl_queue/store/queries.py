"""Reads of runs and rounds that both the coordinator's and the clients' side need."""

from __future__ import annotations

from fl_queue.protocol.job_origins import begun
from fl_queue.store import Control, Glance, RoundState, RunState, Store


def has_ended(control: Control, run: str, number: int, who: str, trains: bool = False) -> bool:
    """
    Whether a job of a round is not wanted any more.

    Its round has ended, or its run is gone or not training any more; in an asynchronous run, the
    newest round has not taken the job over. Or its round has never been: a failover lost its opening,
    and while its client waited for that round's model it could not answer the one that is open.

    Args:
        trains: Whether it is one that trains: a secure round takes no update any more once it is being unmasked.
    """
    seen = control.rounds.glance(run, number)
    if seen is None or seen.newest < number or (trains and seen.is_unmasking):
        return True
    return _is_past(control, run, seen, number, who)


def ended(control: Control, run: str, number: int, who: str) -> bool | None:
    """
    Whether a round has ended, for the finished update of a client; None: the server knows no such run.

    A round that is not there yet has not: after a failover that lost it, it is opened once more, most often
    from the same version, and finds the update.
    """
    seen = control.rounds.glance(run, number)
    return None if seen is None else _is_past(control, run, seen, number, who)


def is_past(
    control: Control, state: RunState, current: RoundState | None, number: int, who: str
) -> bool:
    """The same, of what has been read already. Args: ``current``: None when its keys are not there."""
    is_async, is_open = (current.is_async, current.open) if current else (False, True)
    seen = Glance(state.active, state.round, is_async, is_open)
    return _is_past(control, state.run_id, seen, number, who)


def _is_past(control: Control, run: str, seen: Glance, number: int, who: str) -> bool:
    if not seen.is_training:
        return True
    if seen.is_async:
        # Whether it goes on is decided when the next round is opened, with its tickets.
        return control.rounds.job(run, seen.newest, who).get("number") != number
    return seen.newest > number or not seen.is_open


def is_over(control: Control, run: str) -> bool:
    """Whether a run is not training (any more), or is gone."""
    state = control.runs.get(run)
    return state is None or not state.active


def base_of(store: Store, run: str, current: RoundState, client: str) -> tuple[int, str]:
    """Version and digest that a client's job began with."""
    found = begun(current, client)
    if found.round == current.number:
        return current.base_version, current.base_digest
    return found.version, store.control.versions.get(run, found.version).get("digest", "")
