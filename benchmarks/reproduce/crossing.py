"""Rounds to an accuracy, as McMahan et al. 2017 count them (arXiv 1602.05629, section 3)."""

from __future__ import annotations

from collections.abc import Mapping


def rounds_to(curve: Mapping[int, float], target: float) -> float | None:
    """
    Where the best accuracy so far crosses the target, by linear interpolation between versions.

    Args:
        curve: Version (= rounds that led to it) -> accuracy on the test set. Versions may be left
            out; the interpolation then spans the gap.
        target: The accuracy.

    Returns:
        Rounds; None when the target is not reached.
    """
    best: tuple[int, float] | None = None
    for version, accuracy in sorted(curve.items()):
        if accuracy >= target:
            if best is None:
                return float(version)
            before, lower = best
            return before + (version - before) * (target - lower) / (accuracy - lower)
        best = (version, max(accuracy, best[1] if best else accuracy))
    return None
