"""
Staleness of an update in asynchronous rounds, and the integer weight it has for it.

    tau = version that the round starts from - version that the update was made from
    s(tau) = (1 + tau)**-a  (polynomial), 1 (constant)

The power is computed once for each tau when a round is opened, in decimal arithmetic, so that every
machine gets the same; it becomes an integer that the round records. From there on everything is
integers, as in the rest of the exact sum. No Redis here.

Source:
    Nguyen et al. 2022, arXiv 2106.06639 (FedBuff), section 5: s(tau) = 1 / sqrt(1 + tau).
    Other exponents and constant weights: Xie et al. 2019, arXiv 1903.03934 (FedAsync), section 5.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from typing import Any, Protocol

from fl_queue.aggregation.scales import Scale, choose_scales
from fl_queue.errors import ConfigError

#: s(tau) is a whole number of parts of this.
ONE = 1 << 20
_DIGITS = 40
#: How stale updates' float buffers are merged, see ``rebase``; a round without this entry was opened
#: by an earlier version, which added them as differences.
AS_VALUES = "values"


class StalenessSettings(Protocol):
    """The fields of ``[round]`` that decide how stale updates are weighted."""

    @property
    def staleness(self) -> str:
        """``polynomial`` or ``constant``."""

    @property
    def staleness_exponent(self) -> float:
        """``a`` of the polynomial weights."""

    @property
    def max_staleness(self) -> int:
        """The largest staleness that is accepted."""


@dataclass(frozen=True)
class StalenessWeights:
    """
    Weights of a round's updates by their staleness.

    Args:
        unit: A fresh update's weight is multiplied by it, a power of two, so that a discounted one
            can be rounded to an integer; means do not change by it, to the bit.
        weights: ``s(tau) * ONE`` for each tau from 0 to the largest that is accepted.
    """

    unit: int
    weights: tuple[int, ...]

    @property
    def max_staleness(self) -> int:
        """The largest staleness that is accepted."""
        return len(self.weights) - 1

    def full(self, weight: int) -> int:
        """Weight of a fresh update in the divisor of the mean. Args: ``weight``: of its examples."""
        return weight * self.unit

    def discounted(self, weight: int, staleness: int) -> int:
        """
        Factor of an update in the sum, 1 or more; of a fresh one ``full(weight)``.

        Args:
            weight: Of its examples.
            staleness: 0 to ``max_staleness``.
        """
        return max(1, (self.full(weight) * self.weights[staleness] + ONE // 2) // ONE)

    def to_dict(self) -> dict[str, Any]:
        """As rounds and the history have it."""
        return asdict(self) | {"weights": list(self.weights), "buffers": AS_VALUES}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> StalenessWeights | None:
        """The same read again; None for a synchronous round, which has none."""
        return cls(int(raw["unit"]), tuple(map(int, raw["weights"]))) if raw else None


def weights(kind: str, exponent: float, max_staleness: int) -> tuple[int, ...]:
    """
    ``s(tau) * ONE`` for each tau from 0 to ``max_staleness``, rounded half to even, 1 or more.

    Args:
        kind: ``constant`` or ``polynomial``.
        exponent: ``a``.
    """
    if kind == "constant":
        return (ONE,) * (max_staleness + 1)
    with localcontext() as context:
        context.prec = _DIGITS
        powers = [Decimal(1 + tau) ** -Decimal(exponent) for tau in range(max_staleness + 1)]
        rounded = [(ONE * power).to_integral_value(ROUND_HALF_EVEN) for power in powers]
    return tuple(max(1, int(value)) for value in rounded)


def discount(
    settings: StalenessSettings,
    updates: int,
    w_max: int,
    limits: Mapping[str, float],
    finest: Mapping[str, int],
) -> StalenessWeights:
    """
    The discount of a round, its unit as large as the range of the sum has room for.

    No scale becomes coarser by it: where nothing is stale, the mean has the bits of a synchronous
    round's.

    Args:
        settings: The config's ``[round]`` section.
        updates: How many the round merges.
        w_max: Largest weight of an update's examples.
        limits, finest: Quantity -> largest magnitude and largest s, as for ``choose_scales``.
    """
    made = weights(settings.staleness, settings.staleness_exponent, settings.max_staleness)
    unit, plain = 1, choose_scales(updates, w_max, limits, finest)
    while len(set(made)) > 1 and unit < ONE:
        if _scales(updates, 2 * unit * w_max, limits, finest) != plain:
            break
        unit *= 2
    return StalenessWeights(unit, made)


def _scales(
    updates: int, w_max: int, limits: Mapping[str, float], finest: Mapping[str, int]
) -> dict[str, Scale] | None:
    try:
        return choose_scales(updates, w_max, limits, finest)
    except ConfigError:
        return None
