"""
Types and ranges of a header's fields: each parser takes a field's name and value, or raises ``HeaderError``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from fl_queue.errors import HeaderError

#: Longest text of a field, in characters; a failure report's ``reason`` has to be cut to it.
MAX_TEXT = 4096
#: Values (map entries and list items) one free-form map may hold.
MAX_MAP_ITEMS = 4096
_MAX_NESTING = 4
_DIGEST = re.compile(r"[0-9a-f]{64}")

Parser = Callable[[str, Any], Any]


def fail(name: str, reason: str, public: str = "") -> HeaderError:
    """An error of a field, to raise. Args: ``public``: the reason, where it quotes what the field holds."""
    field = name.partition(",")[0]
    return HeaderError(
        f"header field {name}: {reason}", public=f"header field {field}: {public or reason}"
    )


def text(longest: int) -> Parser:
    """Text of at most so many characters."""

    def parse(name: str, value: Any) -> str:
        if type(value) is not str:
            raise fail(name, f"is a {type(value).__name__}, not text")
        if len(value) > longest:
            raise fail(name, f"has {len(value)} characters, more than {longest}")
        return value

    return parse


def identifier(longest: int) -> Parser:
    """Names and tokens, which end up in keys' fields and before people's eyes."""
    is_text = text(longest)

    def parse(name: str, value: Any) -> str:
        found: str = is_text(name, value)
        if not found.isprintable():
            raise fail(name, "holds characters that cannot be shown")
        return found

    return parse


def one_of(*choices: str) -> Parser:
    """One of some words."""

    def parse(name: str, value: Any) -> str:
        if type(value) is not str or value not in choices:
            raise fail(name, f"is not one of {', '.join(choices)}")
        return value

    return parse


def digest(or_empty: bool) -> Parser:
    """64 hexadecimal digits, or nothing where that may be."""

    def parse(name: str, value: Any) -> str:
        if type(value) is not str or not (_DIGEST.fullmatch(value) or (or_empty and not value)):
            raise fail(name, "is not 64 hexadecimal digits")
        return value

    return parse


def integer(high: int) -> Parser:
    """A whole number, 0 to ``high``."""

    def parse(name: str, value: Any) -> int:
        # type() and not isinstance(): a bool is an int to Python, and no count.
        if type(value) is not int:
            raise fail(name, f"is a {type(value).__name__}, not an integer")
        if not 0 <= value <= high:
            raise fail(name, f"is {value}, not 0 to {high}", f"is not 0 to {high}")
        return value

    return parse


def positive(name: str, value: Any) -> float:
    """A finite floating-point number, 0 or more."""
    if type(value) is not float or not (math.isfinite(value) and value >= 0):
        raise fail(name, "is not a finite floating-point number, 0 or more")
    return value


def mapping(finite: bool) -> Parser:
    """Free-form plain data: a bounded number of values, bounded nesting; ``finite``: no NaN."""

    def parse(name: str, value: Any) -> dict[str, Any]:
        if type(value) is not dict:
            raise fail(name, f"is a {type(value).__name__}, not a map")
        if _count_values(name, value, _MAX_NESTING, finite) > MAX_MAP_ITEMS:
            raise fail(name, f"holds more than {MAX_MAP_ITEMS} values")
        return value

    return parse


def _count_values(name: str, value: Any, nesting: int, finite: bool) -> int:
    """Check that a value is plain, bounded data; how many values it holds, itself included."""
    if value is None or type(value) is bool:
        return 1
    if type(value) is str:
        text(MAX_TEXT)(name, value)
        return 1
    if type(value) is int:
        if not -(2**63) <= value < 2**64:
            raise fail(
                name, f"holds {value}, which takes more than 64 bits", "takes more than 64 bits"
            )
        return 1
    if type(value) is float:
        # JSON has no NaN, and the environment ends up in a receipt as it is.
        if finite and not math.isfinite(value):
            raise fail(name, f"holds {value}", "holds a number that is not finite")
        return 1
    if type(value) not in (dict, list):
        raise fail(name, f"holds a {type(value).__name__}")
    if nesting == 0:
        raise fail(name, f"is nested deeper than {_MAX_NESTING} levels")
    inner = value
    if type(value) is dict:
        for key in value:
            text(MAX_TEXT)(f"{name}, a key of it", key)
        inner = value.values()
    return 1 + sum(_count_values(name, item, nesting - 1, finite) for item in inner)


def scalars(name: str, value: Any) -> dict[str, float]:
    """Names and floating-point numbers, all finite."""
    found: dict[str, float] = mapping(finite=True)(name, value)
    if any(type(number) is not float for number in found.values()):
        raise fail(name, "holds something else than floating-point numbers")
    return found
