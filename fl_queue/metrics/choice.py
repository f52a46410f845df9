"""The best version by ``run.select``, and the end of a run by ``run.stop_when``. No torch and no Redis here."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping

#: ``run.stop_when``: a metric, how it is compared, and with what.
_CONDITION = re.compile(r"(\w+)\s*(>=|<=|>|<)\s*(\S+)")
_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


def best_version(select: str, versions: Mapping[int, Mapping[str, float]]) -> int | None:
    """
    The version with the best finished metrics; of equals the earliest.

    Args:
        select: ``metric:max`` or ``metric:min``, as ``run.select``; empty: the highest accuracy, or
            the lowest loss where no version has one.
        versions: Version -> its finished metrics; those without the metric are passed over.

    Returns:
        None when no version has the metric.
    """
    if not select:
        has_accuracy = any("accuracy" in found for found in versions.values())
        select = "accuracy:max" if has_accuracy else "loss:min"
    metric, direction = select.split(":")
    sign = -1.0 if direction == "max" else 1.0
    ranked = [
        (sign * found[metric], version) for version, found in versions.items() if metric in found
    ]
    return min(ranked)[1] if ranked else None


def stop_holds(condition: str, finished: Mapping[str, float]) -> bool:
    """
    Whether ``run.stop_when`` holds; never for an empty condition or an absent metric.

    Args:
        condition: Such as ``accuracy >= 0.97``, as the config has checked it.
        finished: Finished metrics of the clients' validation.
    """
    match = _CONDITION.fullmatch(condition)
    if match is None or match[1] not in finished:
        return False
    return _COMPARISONS[match[2]](finished[match[1]], float(match[3]))


def bound(condition: str) -> tuple[str, float] | None:
    """The metric of ``run.stop_when`` and the number it is compared with; None: it is empty."""
    match = _CONDITION.fullmatch(condition)
    return (match[1], float(match[3])) if match else None
