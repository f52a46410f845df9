"""
Finished metrics that are data: sums under a name that has their form and the direction of improvement.

A key is ``<metric>.<form>.<direction>``, such as ``dice.macro.max``. So sums are finished anywhere, without the
task and without its code, and a metric's numerator never travels without its denominator:

    ratio   [a, b]              a / b
    root    [a, b]              sqrt(a / b)
    exp     [a, b]              exp(a / b)
    macro   [[a, ...], [b, ...]]    mean of a / b over the entries whose b is not 0
    r2      [e, n, d, q]        1 - e / (q - d^2 / n): of n errors the sum of squares e, and of the targets less
                                a constant the sum d and the sum of squares q (coefficient of determination)

A metric whose denominator is 0 has no value. No torch here.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any, Literal, get_args

from fl_queue.errors import ConfigError

Direction = Literal["max", "min"]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
#: Most entries of a vector.
MAX_LENGTH = 256
#: Most entries of a vector of a task's own sums, and most such sums.
MAX_OWN_LENGTH, MAX_OWN = 60, 24
#: Last word, or last two, of names that mean the same everywhere -> which way they are better.
_USUAL: Mapping[str, Direction] = MappingProxyType(
    {
        **dict.fromkeys(
            ("accuracy", "precision", "recall", "sensitivity", "specificity", "f1", "auc", "auroc", "dice", "iou", "r2", "bleu"),
            "max",
        ),
        **dict.fromkeys(
            ("loss", "error", "mae", "mse", "rmse", "mape", "perplexity", "hamming", "nll", "error_rate"), "min"
        ),
    }
)  # fmt: skip
_log = logging.getLogger(__name__)
_SIZES = {"ratio": 2, "root": 2, "exp": 2, "r2": 4}
_NAME = re.compile(r"[a-z][a-z0-9_]{0,47}")
_KEY = re.compile(rf"({_NAME.pattern})\.(ratio|root|exp|macro|r2)\.(max|min)")


def key_of(name: str, form: str, direction: str) -> str:
    """The key of a metric's sums."""
    return f"{name}.{form}.{direction}"


def parts_of(key: str) -> tuple[str, str, str] | None:
    """Name, form and direction of a key; None: it is no key of this kind."""
    match = _KEY.fullmatch(key)
    return (match[1], match[2], match[3]) if match else None


def problem(form: str, value: Any, is_sum: Any) -> str:
    """
    Why a value is not of a form; empty when it is.

    Args:
        is_sum: Whether one value is a number that a sum may be.
    """
    if form == "macro":
        is_pair = isinstance(value, list) and len(value) == 2
        vectors = value if is_pair and all(isinstance(one, list) for one in value) else []
        fits = bool(vectors) and len(vectors[0]) == len(vectors[1]) <= MAX_LENGTH
        if not fits or not all(map(is_sum, [*vectors[0], *vectors[1]])):
            return f"two lists of as many numbers, {MAX_LENGTH} at most"
        return ""
    size = _SIZES[form]
    if not isinstance(value, list) or len(value) != size or not all(map(is_sum, value)):
        return f"a list of {size} numbers"
    return ""


def value_of(form: str, sums: Any) -> float | None:
    """A metric's value; None when it has none."""
    try:
        found = _FINISH[form](*sums)
    except (ZeroDivisionError, ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def _macro(above: Sequence[float], below: Sequence[float]) -> float:
    shares = [a / b for a, b in zip(above, below, strict=True) if b]
    return math.fsum(shares) / len(shares)


def _r2(errors: float, count: float, sum_of: float, squares: float) -> float:
    return 1.0 - errors / (squares - sum_of * sum_of / count)


_FINISH: Mapping[str, Any] = {
    "ratio": lambda a, b: a / b,
    "root": lambda a, b: math.sqrt(a / b),
    "exp": lambda a, b: math.exp(a / b),
    "macro": _macro,
    "r2": _r2,
}


def usual_direction(name: str) -> Direction | None:
    """Which way a metric is better by its name, such as ``val_accuracy``; None: the name does not show it."""
    words = name.split("_")
    # Of parts of it, such as accuracy_gap or f1_std, nothing is known.
    return _USUAL.get("_".join(words[-2:])) or _USUAL.get(words[-1])


@cache
def _warn_of(name: str, direction: str) -> None:
    """Warn once: a task's metrics are asked for in every evaluation."""
    other = "min" if direction == "max" else "max"
    _log.warning(
        'metrics: %s is declared as better where it is %s; if it is what its name means, declare direction="%s", '
        "else give it another name: run.select and patience follow the direction",
        name,
        "higher" if direction == "max" else "lower",
        other,
    )


@dataclass(frozen=True)
class OwnMetric:
    """
    A metric of a task's own sums (``Task.own_sums``): a numerator over a denominator.

    Args:
        name: Lower-case letters, digits and ``_``, 48 at most.
        numerator: Name of a sum.
        denominator: Name of a sum; empty: the number of samples.
        direction: Which way it is better.

    Raises:
        ConfigError: A name or the direction cannot be used.
    """

    name: str
    numerator: str
    denominator: str = ""
    direction: Direction = "max"

    form = ""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(str(self.name)):
            raise ConfigError(
                "metrics",
                f"{str(self.name)[:64]!r} is no name; begin with a letter and use lower-case letters, digits "
                "and _, at most 48",
                public="a name cannot be used; begin with a letter and use lower-case letters, digits and _",
            )
        if self.direction not in DIRECTIONS:
            raise ConfigError(
                "metrics",
                f"{self.name}: direction is {str(self.direction)[:40]!r}; write max or min",
                public="a direction is neither max nor min",
            )
        if usual_direction(self.name) not in (None, self.direction):
            _warn_of(self.name, self.direction)

    @property
    def key(self) -> str:
        """The key of its sums."""
        return key_of(self.name, self.form, self.direction)

    def sums(self, own: Mapping[str, Any], samples: int) -> list[Any]:
        """
        Its sums, of those that the task returned.

        Args:
            own: Name -> a number, or a list of numbers for a vector.
            samples: How many they are of.

        Raises:
            ConfigError: One is missing, or is no number where one is needed.
        """
        return [self._sum(own, self.numerator), self._below(own, samples)]

    def _below(self, own: Mapping[str, Any], samples: int) -> Any:
        return self._sum(own, self.denominator) if self.denominator else samples

    def _sum(self, own: Mapping[str, Any], name: str) -> Any:
        if name not in own:
            raise ConfigError(
                "metrics",
                f"{self.name} needs the sum {name}, which own_sums does not return; it returns {', '.join(own)}",
                public=f"{self.name} needs the sum {name}, which own_sums does not return",
            )
        found = own[name]
        if isinstance(found, list) != (self.form == "macro"):
            wanted = "a vector" if self.form == "macro" else "a number"
            raise ConfigError(
                "metrics", f"{self.name} needs {wanted} as {name}; see own_sums", public=True
            )
        return found


class Ratio(OwnMetric):
    """Numerator / denominator, of two sums: ``Ratio("dice", "hits2", "total", "max")``."""

    form = "ratio"


class Mean(OwnMetric):
    """Numerator / number of samples: ``Mean("seconds", "seconds_sum", direction="min")``."""

    form = "ratio"

    def __init__(self, name: str, numerator: str, direction: Direction = "max") -> None:
        super().__init__(name, numerator, "", direction)


class Root(OwnMetric):
    """Square root of numerator / denominator (of the samples, if that is empty)."""

    form = "root"


class Exp(OwnMetric):
    """Exponential of numerator / denominator (of the samples, if that is empty)."""

    form = "exp"


class Macro(OwnMetric):
    """Mean of the ratios of two vectors' entries, over those whose denominator is not 0."""

    form = "macro"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.denominator:
            raise ConfigError(
                "metrics",
                f"{self.name}: Macro needs a denominator, a vector of own_sums",
                public=True,
            )
