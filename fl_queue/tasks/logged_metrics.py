"""Numbers that a task logs while it trains: means of named numbers, bounded and checked. No Redis here."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from fl_queue.errors import ConfigError
from fl_queue.metrics import BESIDE
from fl_queue.protocol.records import Sums
from fl_queue.tasks import plain_numbers

#: Names one client may log in a round; its training's own sums need room in the header, too.
MOST = 24
#: Values within it add up over any number of calls and examples without overflowing.
LARGEST = 1e100
_NAME = re.compile(r"[a-z][a-z0-9_]{0,47}")
#: Names that training and validation use already.
_TAKEN = (
    "loss",
    "accuracy",
    "f1",
    "auc",
    "num_examples",
    "confusion",
    "score_histograms",
    "logit_histograms",
    "over",
)
_CALL = "context.log"


class TrainingLog:
    """The means of what one client logs in one round's training; constant memory for each name."""

    def __init__(self) -> None:
        self._totals: dict[str, tuple[float, int]] = {}

    def add(self, values: Mapping[str, Any], examples: int) -> None:
        """
        Take one number for each name.

        Args:
            values: Name -> a number, or a tensor of one.
            examples: Over how many examples each is the mean: its weight.

        Raises:
            ConfigError: A name or a value that cannot be used, or too many names.
        """
        examples = plain_numbers.number(examples)
        if type(examples) is not int or examples < 1:
            raise ConfigError(
                _CALL,
                f"examples is {examples!r}; give a whole number, 1 or more",
                public="examples is no whole number, 1 or more",
            )
        for name, value in values.items():
            number = _number(name, value)
            if name not in self._totals:
                self._check_new(name)
            total, weight = self._totals.get(name, (0.0, 0))
            self._totals[name] = total + number * examples, weight + examples

    def means(self) -> dict[str, float]:
        """Name -> the mean of what was logged so far, sorted."""
        return {name: total / weight for name, (total, weight) in sorted(self._totals.items())}

    def joined(self, sums: Sums, num_examples: int) -> Sums:
        """
        The training's sums with what was logged: of each name its mean, times the examples.

        So the mean over clients is weighted by their examples, as every metric's is.

        Args:
            sums: As the task's ``train`` returned them.
            num_examples: The client's training samples.

        Raises:
            ConfigError: A name is among them already.
        """
        if not self._totals:
            return sums
        for name in self._totals:
            if f"{name}_sum" in sums:
                raise ConfigError(
                    _CALL,
                    f"{name} is what train() returns, too; log another name",
                    public="a name is what train() returns, too; log another name",
                )
        examples = sums.get("num_examples") or num_examples
        logged = {f"{name}_sum": mean * examples for name, mean in self.means().items()}
        return {**sums, "num_examples": examples, **logged}

    def _check_new(self, name: str) -> None:
        if not _NAME.fullmatch(name):
            raise ConfigError(
                _CALL,
                f"{name[:64]!r} is no name; begin with a letter and use lower-case letters, digits "
                "and _, at most 48",
                public="a name cannot be used; begin with a letter and use lower-case letters, digits and _, at most 48",
            )
        if name in _TAKEN or name.startswith(tuple(f"{part}_" for part in BESIDE)):
            raise ConfigError(
                _CALL,
                f"{name} is a metric's name already; log it as my_{name}",
                public="a name is a metric's name already; log it as my_...",
            )
        if len(self._totals) >= MOST:
            near = get_close_matches(name, self._totals, 1)
            one_of = f" (near {near[0]})" if near else ""
            raise ConfigError(
                _CALL,
                f"{name}{one_of} would be name {MOST + 1}, and {MOST} may be logged; use the same few "
                "names in every step",
                public=f"there are more than {MOST} names; use the same few names in every step",
            )


def _number(name: object, value: Any) -> float:
    if not isinstance(name, str):
        raise ConfigError(
            _CALL,
            f"{name!r} is no name; give log(name, value) or log(name=value)",
            public="a name is no text; give log(name, value) or log(name=value)",
        )
    try:
        number = float(plain_numbers.number(value))
    except (TypeError, ValueError, RuntimeError):
        what = f"{type(value).__name__} {str(value)[:40]!r}"
        raise ConfigError(
            _CALL,
            f"{name} is a {what}; log one number",
            public="a value is no number; log one number",
        ) from None
    if not math.isfinite(number) or abs(number) > LARGEST:
        raise ConfigError(
            _CALL,
            f"{name} is {number:g}; log finite numbers, {LARGEST:g} at most, or leave it out",
            public=f"a value is not finite, or beyond {LARGEST:g}; log other numbers, or leave it out",
        )
    return number
