"""
Multi-Krum: the mean of the m updates with the lowest Krum scores.

    s_i as in Krum
    x <- x + 1 / m sum of the u_i with the m lowest s_i

``m = 0`` stands for n - f - 2, the most the paper allows. Needs n >= 2 f + 3 and m <= n - f - 2.

Where implementations differ: scores are computed once, as the paper has it; some compute them again
after each choice, which Bulyan does here.

Source:
    Blanchard et al. 2017, "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent",
    arXiv 1703.02757, section 5 (Multi-Krum).
"""

from __future__ import annotations

from typing import ClassVar

from fl_queue.common.options import Option
from fl_queue.strategies.krum import Krum
from fl_queue.strategies.robust import F


class MultiKrum(Krum):
    """Krum, and some more."""

    OPTIONS: ClassVar = {
        "f": F,
        "m": Option("int", 0, "m, updates that are averaged; 0: n - f - 2", low=0),
    }
    NEEDS = "n >= 2 f + 3, n >= m + f + 2"

    def min_updates(self) -> int:
        """``2 f + 3``, and ``m + f + 2``."""
        f, m = int(self.options["f"]), int(self.options["m"])
        return max(super().min_updates(), m + f + 2 if m else 0)

    def chosen_count(self, n: int) -> int:
        """``m``."""
        return int(self.options["m"]) or n - int(self.options["f"]) - 2
