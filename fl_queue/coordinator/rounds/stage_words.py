"""How far an open round is, in words: of a secure round its stage, and who is silent in it."""

from __future__ import annotations

from fl_queue.protocol.records import Verdict
from fl_queue.protocol.secure_state import Stage
from fl_queue.store import RoundState, Store
from fl_queue.store.control.stages import received

#: Clients that a line names.
_NAMED = 4


def progress(store: Store, run: str, current: RoundState, updates: int) -> str:
    """
    Describe the progress of an open round.

    Args:
        updates: Updates that are in.
    """
    if current.secure is None:
        return current.progress(updates)
    stages = store.control.stages.of_round(run, current.number)
    stage, keys = current.secure.stage, received(stages, "keys")
    if stage == Stage.keys:
        silent = sorted(set(current.cohort) - keys)
        return f"stage keys: {len(keys)} of {len(current.cohort)} clients have sent keys{_silent(silent)}"
    if stage == Stage.updates:
        return f"stage updates: {updates} of {len(keys)} masked updates in, quorum {current.quorum}"
    answered = {client for client, found in stages.items() if "unmask" in found}
    good = sum(stages[client]["unmask"].status == Verdict.received for client in answered)
    return f"stage unmask: {good} of {len(keys)} answered{_silent(sorted(keys - answered))}"


def _silent(clients: list[str]) -> str:
    if not clients:
        return ""
    more = f" and {len(clients) - _NAMED} more" if len(clients) > _NAMED else ""
    return f", {', '.join(clients[:_NAMED])}{more} silent"
