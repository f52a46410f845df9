"""The identity of an aggregator that owns a round: only its owner may take messages of it and end it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Incarnation:
    """
    One claim of one aggregator on one round.

    Args:
        run: Run id.
        round: Number of the round.
        fence: Count of the claims on the round: a higher one replaces all lower ones.
        token: Random text that names this claim on both servers.
    """

    run: str
    round: int
    fence: int
    token: str
