"""Learning rates within a round, as factors of the round's. No torch here."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """
    The factor of each step of a round.

    It rises by equal parts in the first steps and reaches 1 in the last of them. Then it stays there, or falls,
    along a line or half a cosine, to what would be 0 in the step after the last one.

    Args:
        kind: ``constant``, ``linear`` or ``cosine``.
        warmup: Part of the steps in which the factor rises, 0 to 1; rounded to whole steps.
        steps: Number of steps of the round.

    Source:
        Cosine: Loshchilov and Hutter 2017, arXiv 1608.03983, equation (5), without restarts.
    """

    kind: str = "constant"
    warmup: float = 0.0
    steps: int = 0

    @property
    def is_plain(self) -> bool:
        """Whether every factor is 1."""
        return self.kind == "constant" and not self.warmup

    def factor(self, step: int) -> float:
        """The factor of a step, numbered from 0; 0.0 after the last one of a schedule that falls."""
        rising = round(self.warmup * self.steps)
        if step < rising:
            return (step + 1) / rising
        if self.kind == "constant":
            return 1.0
        left = max(0.0, (self.steps - step) / max(1, self.steps - rising))
        return left if self.kind == "linear" else (1.0 - math.cos(math.pi * left)) / 2.0

    def factors(self) -> list[float]:
        """The factors of all steps."""
        return [self.factor(step) for step in range(self.steps)]
