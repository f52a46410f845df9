"""
The fixed-point format of each quantity of an exact sum: chosen so that no sum of a round can overflow.

A function of how many updates there may be, their largest weight and the limits; recorded with the round.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

from fl_queue.aggregation import digits
from fl_queue.errors import ConfigError
from fl_queue.protocol.arrays import FINEST

_COARSEST = 8
#: Quantity -> the config's field that has its limit.
LIMIT_FIELDS: dict[str, str] = {
    "parameter": "aggregation.limit",
    "float_buffer": "aggregation.buffer_limit",
    "dc": "strategy.control_limit",
}


class Scale(NamedTuple):
    """
    The fixed-point format of one quantity in one round; recorded with the round.

    Args:
        s: Fractional bits: the resolution is 2**-s.
        limit: Largest magnitude an update may have.
        digit: Bits of each of the digits that hold what is left below; 0: that is rounded away.
    """

    s: int
    limit: float
    digit: int = 0

    @classmethod
    def of(cls, recorded: Sequence[float]) -> Scale:
        """As a round has recorded it."""
        s, limit, *digit = recorded
        return cls(int(s), limit, *map(int, digit))

    def to_list(self) -> list[float]:
        """As a round records it."""
        return [self.s, self.limit, self.digit] if self.digit else [self.s, self.limit]

    def fits(self, cohort: int, w_max: int, bits: int = 64) -> bool:
        """Whether no sum of so many updates of that weight can leave integers of ``bits`` bits; exact."""
        # The ceiling because rint may round a value at the limit up.
        most = cohort * w_max * math.ceil(Fraction(self.limit) * Fraction(2) ** self.s)
        return most < 1 << (bits - 1)


def choose_scales(
    cohort: int,
    w_max: int,
    limits: Mapping[str, float],
    finest: Mapping[str, int] | None = None,
    bits: int = 64,
) -> dict[str, Scale]:
    """
    The finest scales under which no sum of a round can overflow.

    Args:
        cohort: Updates the round may accept, 1 or more.
        w_max: Largest weight of one of them, 1 or more.
        limits: Quantity (``parameter``, ``float_buffer``, an extra) -> largest magnitude, finite and
            above 0.
        finest: Quantity -> its largest s; 31 where it is not named.
        bits: Of the integers in which the sum is formed; fewer than 64 only in secure rounds.

    Returns:
        Quantity -> scale with the largest s for which
        ``cohort * w_max * ceil(limit * 2**s) < 2**(bits - 1)`` (exact; the ceiling because rint may round
        a value at the limit up).

    Raises:
        ConfigError: s would be below 8, too coarse to train with.
    """
    most = finest or {}
    return {
        name: _choose_scale(cohort, w_max, name, limit, most.get(name, FINEST), bits)
        for name, limit in limits.items()
    }


def _choose_scale(
    cohort: int, w_max: int, name: str, limit: float, finest: int, bits: int
) -> Scale:
    fitting = (s for s in range(finest, -1, -1) if Scale(s, limit).fits(cohort, w_max, bits))
    s = next(fitting, 0)
    if s >= _COARSEST:
        return Scale(s, limit)
    field = LIMIT_FIELDS.get(name, "aggregation.limit")
    if bits < 64:
        raise ConfigError(
            "secure.bits",
            f"{bits} leaves {s} fractional bits for {cohort} clients of weight up to {w_max}, and {_COARSEST} are"
            f' needed; set aggregation.weighting = "uniform" or "capped", lower {field}, or take 64',
        )
    raise ConfigError(
        field,
        f"{limit} leaves no room for the sum of {cohort} updates of weight up to {w_max}; lower it,"
        " or the weights (aggregation.max_examples, or weighting = capped)",
    )


def exact_scale(cohort: int, w_max: int, limit: float) -> Scale:
    """
    A scale under which every bit of an update is summed, whatever its limit: that of float buffers.

    Args:
        cohort, w_max, limit: As for ``choose_scales``.

    Raises:
        ConfigError: There is no room for so many updates of that weight, whatever their limit.
    """
    digit = digits.width(cohort, w_max)
    if not digit:
        raise ConfigError(
            "aggregation.max_examples",
            f"there is no room for the sum of {cohort} updates of weight up to {w_max}; lower it, or use "
            "weighting = capped",
        )
    s = FINEST
    while not Scale(s, limit).fits(cohort, w_max):
        s -= 1
    return Scale(s, limit, digit)
