"""
The panel of a fit: the clients of its first committed step, which all further steps wait for.

Sums over changing sets of rows have no common maximum, so no step is made of another set than the panel. A member
that is lost ends the step: the fit goes on with the others, asks again, or fails (``task.on_loss``).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from fl_queue.config.run_config import RunConfig
from fl_queue.coordinator.rounds.ending import Ending
from fl_queue.protocol.panel import Loss, Panel
from fl_queue.protocol.records import Outcome, Purpose, Receipt
from fl_queue.store import RoundState, RunState

#: Clients that a line names.
_NAMED = 8
#: Characters of a client's own words.
_CAUSE = 300
#: Of an abandoned step, also of the last one: then the run has failed.
_WAIT = (
    "the whole panel is to answer, in at most round.max_abandoned attempts (task.on_loss = wait)"
)


@dataclass(frozen=True)
class PanelRound:
    """
    A step of a fit that has its panel.

    Args:
        panel: It.
        current: The step's round.
        on_loss: As the config has it: ``restart``, ``wait`` or ``fail``.
    """

    panel: Panel
    current: RoundState
    on_loss: str

    def ending(
        self,
        receipts: Mapping[str, Receipt],
        pending: Collection[str],
        elapsed_s: float,
        now: str,
    ) -> Ending | None:
        """
        The end of a step that not all have answered; None: it is waited for them.

        Args:
            receipts: Client -> its receipt.
            pending: Clients that may still answer.
            elapsed_s: Counted time since the round opened.
            now: Time, ISO 8601, UTC.
        """
        is_late = elapsed_s >= self.current.deadline_s
        received = {client for client, found in receipts.items() if found.is_in}
        silent = {client for client in self.panel.clients if client in pending}
        refused = {*self.panel.clients} - received - silent
        if not (refused or (silent and is_late)):
            return None
        may_answer = 0 if is_late else len(silent)
        is_enough = len(received) + may_answer >= self.panel.quorum
        if self.on_loss == "restart" and may_answer and is_enough:
            return None  # The panel is to be all who answer this step.
        step = self.current.base_version + 1
        reasons = {
            client: receipts[client].reason[:_CAUSE] if client in receipts else "revoked"
            for client in refused
        }
        if is_late:
            reasons |= dict.fromkeys(silent, f"silent at {elapsed_s:.0f} s")
        lost = [
            Loss(client, step, self.current.number, now, reason)
            for client, reason in sorted(reasons.items())
        ]
        return self._decided(lost, len(received) + may_answer)

    def _decided(self, lost: Sequence[Loss], left: int) -> Ending:
        text = "; ".join(f"{one.client}: {one.reason}" for one in lost[:_NAMED])
        more = f" and {len(lost) - _NAMED} more" if len(lost) > _NAMED else ""
        what = f"step {lost[0].step}: {text}{more}"
        of_all = f"{left} of {len(self.panel.clients)} left"
        if self.on_loss == "wait":
            return Ending(Outcome.abandoned, f"{what}; {_WAIT}")
        if self.on_loss == "fail":
            return Ending(Outcome.abandoned, f"{what}; {of_all} (task.on_loss = fail)", fails=True)
        if left < self.panel.quorum:
            reason = f"{what}; {of_all}, quorum {self.panel.quorum}"
            return Ending(Outcome.abandoned, reason, fails=True)
        shrunk = self.panel.without(lost)
        names = ", ".join(shrunk.clients[:_NAMED]) + (", ..." if left > _NAMED else "")
        reason = f"{what}; the fit goes on with {names}"
        return Ending(Outcome.abandoned, reason, panel=shrunk)


def of_round(state: RunState, current: RoundState, config: RunConfig) -> PanelRound | None:
    """The panel that a round waits for; None: it is no further step of a fit."""
    if current.purpose != Purpose.sums or state.panel is None:
        return None
    return PanelRound(state.panel, current, str(config.task.get("on_loss", "restart")))


def of_first_step(config: RunConfig, cohort: Sequence[str], accepted: Collection[str]) -> Panel:
    """The panel of a fit whose first step is committed. Args: ``accepted``: clients whose answers are in it."""
    return Panel(tuple(sorted(accepted)), config.quorum_size(len(cohort)))
