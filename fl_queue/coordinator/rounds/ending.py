"""The end of a round, as it is decided before it is written."""

from __future__ import annotations

from dataclasses import dataclass

from fl_queue.protocol.panel import Panel


@dataclass(frozen=True)
class Ending:
    """
    End of a round.

    Args:
        outcome: Of the round.
        reason: Of the outcome.
        fails: Whether the run fails with it, however many rounds may be abandoned.
        panel: Of a fit from now on, which goes on without those that the round has lost; None: as it was.
    """

    outcome: str
    reason: str
    fails: bool = False
    panel: Panel | None = None
