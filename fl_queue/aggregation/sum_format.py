"""
The number format of a round's exact sum: the largest weight, and a scale for each quantity.

Computed when a round is opened, and before that when a config is read: one that leaves no room for the sum
is refused before anything is begun. No Redis here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from fl_queue.aggregation import staleness
from fl_queue.aggregation.scales import Scale, choose_scales, exact_scale
from fl_queue.aggregation.staleness import StalenessSettings, StalenessWeights
from fl_queue.aggregation.weighting import WeightSettings, largest_weight
from fl_queue.common.safe_json import dumps
from fl_queue.strategies import get_strategy
from fl_queue.strategies.base import LimitSettings


class SumSettings(WeightSettings, LimitSettings, Protocol):
    """The fields of ``[aggregation]`` that decide a sum's format."""

    @property
    def strategy(self) -> str:
        """Name of the strategy."""


class SumFormat(NamedTuple):
    """Args: ``w_max``: largest weight; ``discount``: of asynchronous rounds, else None."""

    w_max: int
    scales: dict[str, Scale]
    discount: StalenessWeights | None = None

    def fields(self) -> dict[str, str]:
        """As a round's hash has it."""
        return {
            "w_max": str(self.w_max),
            "scales": dumps({kind: scale.to_list() for kind, scale in self.scales.items()}),
            "discount": dumps(self.discount.to_dict() if self.discount else {}),
        }


def sum_format(
    aggregation: SumSettings,
    options: Mapping[str, Any],
    updates: int,
    asynchronous: StalenessSettings | None = None,
    bits: int = 64,
) -> SumFormat:
    """
    The format of a round's sum.

    Args:
        aggregation, options: The config's ``[aggregation]`` and ``[strategy]``.
        updates: How many the round may merge, 1 or more.
        asynchronous: The config's ``[round]``, of an asynchronous round.
        bits: Of the integers in which parameters are summed; float buffers always have 64.

    Raises:
        ConfigError: There is no room for so many updates; names the limit to lower.
    """
    w_max = largest_weight(aggregation)
    ranges = get_strategy(aggregation.strategy, options).ranges(aggregation)
    buffers = ranges.pop("float_buffer").limit
    limits = {name: span.limit for name, span in ranges.items()}
    finest = {name: span.finest for name, span in ranges.items()}
    discount = None
    if asynchronous is not None:
        discount = staleness.discount(asynchronous, updates, w_max, limits, finest)
        w_max = discount.full(w_max)
    scales = choose_scales(updates, w_max, limits, finest, bits)
    scales["float_buffer"] = exact_scale(updates, w_max, buffers)
    return SumFormat(w_max, scales, discount)
