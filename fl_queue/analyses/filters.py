"""
Conditions of ``task.where``: which rows of a table a question is about.

A row is in if it meets all of them; a missing cell meets none. Texts that are numbers are compared as numbers.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np

from fl_queue.analyses.suppression import Mask
from fl_queue.errors import ConfigError, DataError

#: Conditions of one question.
MAX_CONDITIONS = 8
#: Stands in a policy's pattern for any value.
ANY = "*"
_COMPARED: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le, ">=": operator.ge, "!=": operator.ne, "=": operator.eq, "<": operator.lt, ">": operator.gt
}  # fmt: skip
_EQUAL = ("=", "!=")
_FORM = re.compile(r"\s*([^<>=]*?[^<>=!\s])\s*(<=|>=|!=|=|<|>)\s*([^<>=\s].*?)\s*")


@dataclass(frozen=True)
class Condition:
    """
    A comparison of a column with a value.

    Args:
        column: Its name.
        sign: One of ``= != < <= > >=``.
        value: A text; with ``<`` and the like a number or a date such as 2024-02-29.
    """

    column: str
    sign: str
    value: str

    @classmethod
    def of_text(cls, text: str, field: str = "task.where") -> Condition:
        """
        Read a condition such as ``age >= 18``, its value in the one way that it is written.

        Raises:
            ConfigError: It is none. Args: ``field``: named there.
        """
        found = _FORM.fullmatch(text)
        if found is None:
            raise ConfigError(field, f'{text[:60]!r} is no condition such as "age >= 18"')
        column, sign, value = found.groups()
        if sign not in _EQUAL and value != ANY and _key(value) is None:
            raise ConfigError(
                field, f"{text[:60]!r} compares with neither a number nor a date such as 2024-02-29"
            )
        number = _number(value)
        return cls(column, sign, value if number is None else f"{number:.17g}")

    @property
    def text(self) -> str:
        """As a ledger and a result write it."""
        return f"{self.column} {self.sign} {self.value}"

    def is_let_in(self, pattern: str) -> bool:
        """
        Whether a pattern of a policy lets it in.

        Args:
            pattern: A column's name: equality with any value; ``age < *``: any value; else this very condition.
        """
        if _FORM.fullmatch(pattern) is None:
            return pattern.strip() == self.column and self.sign in _EQUAL
        known = Condition.of_text(pattern)
        return known == self or (
            known.value == ANY and known == Condition(self.column, self.sign, ANY)
        )

    def holds(self, texts: Sequence[str]) -> Mask:
        """
        Of each of these different cells whether it meets the condition.

        Raises:
            DataError: The column holds something else than what its value is; names no cell.
        """
        if self.sign in _EQUAL:
            number = _number(self.value)
            are_equal = [
                text == self.value or (number is not None and _number(text) == number)
                for text in texts
            ]
            return np.array(are_equal, np.bool_) ^ (self.sign == "!=")
        value, keys = _key(self.value), [_key(text) for text in texts]
        if any(type(key) is not type(value) for key in keys):
            kind = "numbers" if isinstance(value, float) else "dates"
            raise DataError(
                "table",
                f"column {self.column}: task.where compares {kind}, and not all cells are",
                public=True,
            )
        compared = _COMPARED[self.sign]
        return np.array([compared(key, value) for key in keys], np.bool_)


def of_texts(texts: Sequence[str]) -> tuple[Condition, ...]:
    """
    The conditions of ``task.where``, in one order.

    Raises:
        ConfigError: One cannot be read, or stands twice.
    """
    if len(texts) > MAX_CONDITIONS:
        raise ConfigError("task.where", f"has {len(texts)} conditions; {MAX_CONDITIONS} at most")
    found = [Condition.of_text(text) for text in texts]
    for one in found:
        if one.value == ANY:
            raise ConfigError("task.where", f"{one.text!r} is for a site's policy; name a value")
        if found.count(one) > 1:
            raise ConfigError("task.where", f"{one.text!r} stands twice; leave one out")
    return tuple(sorted(found, key=lambda one: one.text))


def problem(patterns: Sequence[str]) -> str | None:
    """What is wrong with ``filters`` of a policy; None: nothing."""
    for pattern in patterns:
        if not pattern.strip():
            return "has an empty pattern"
        try:
            if re.search("[<>=]", pattern):
                Condition.of_text(pattern, "filters")
        except ConfigError as exc:
            return exc.reason
    return None


def _number(text: str) -> float | None:
    """A finite number, with a point or a comma; None: it is none."""
    try:
        found = float(text.replace(",", "."))
    except ValueError:
        return None
    return found if np.isfinite(found) and "_" not in text else None


def _key(text: str) -> float | date | None:
    """What a text is compared by: a number or a day; None: neither."""
    number = _number(text)
    if number is not None:
        return number
    try:
        return date.fromisoformat(text[:10])
    except ValueError:
        return None
