"""
JSON of other processes -> plain values and records of checked types.

Whatever the text is, ``MessageError`` is raised and nothing else.
"""

from __future__ import annotations

import json
import math
from typing import Any, TypeVar

from fl_queue.common import schema
from fl_queue.errors import MessageError

Record = TypeVar("Record")


def loads(text: str | bytes, what: str) -> Any:
    """
    JSON as plain values. Args: ``what``: name of the document, for the error.

    Raises:
        MessageError: It is no JSON, holds NaN, Infinity or half a character, or is nested too deep.
    """
    try:
        # json.loads() would accept bytes in UTF-16, and half characters in UTF-8.
        text = text if isinstance(text, str) else bytes(text).decode()
        value = json.loads(text, parse_constant=_refuse, parse_float=_finite)
        if "\\u" in text:
            # Half characters cannot be stored; they come in escapes only.
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except (ValueError, RecursionError) as exc:
        raise MessageError(f"not {what}: {str(exc)[:200] or type(exc).__name__}") from exc


def dumps(value: Any) -> str:
    """JSON as it is stored: sorted keys, so equal values are equal bytes; no NaN."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False
    )


def record(kind: type[Record], raw: Any, what: str) -> Record:
    """
    A dataclass from the map of its fields, see ``schema.parse``.

    Args:
        what: Name of the record, for the error.

    Raises:
        MessageError: A field is missing, unknown, of another type, or out of its limits; names it.
    """
    try:
        return schema.parse(kind, raw)
    except schema.Invalid as exc:
        where = f"field {exc.place} " if exc.place else "it "
        raise MessageError(f"not {what}: {where}{exc.reason}") from None


def decode(kind: type[Record], text: str | bytes, what: str) -> Record:
    """A record from its JSON. Args: ``what``: as of ``record``. Raises MessageError."""
    return record(kind, loads(text, what), what)


def clean(value: Any, what: str, nesting: int = 8) -> Any:
    """
    The same plain value, with text that can be stored and shown.

    Raises:
        MessageError: It is nested deeper than ``nesting`` levels, or holds an integer of more than 64 bits.
    """
    if type(value) is str:
        return printable(value)
    if type(value) is int and not -(2**63) <= value < 2**64:
        raise MessageError(f"not {what}: it holds a number of more than 64 bits")
    if type(value) not in (dict, list):
        return value
    if nesting == 0:
        raise MessageError(f"not {what}: it is nested too deep")
    if type(value) is list:
        return [clean(item, what, nesting - 1) for item in value]
    return {printable(key): clean(item, what, nesting - 1) for key, item in value.items()}


def printable(text: str) -> str:
    """Text on one line, without halves of characters and control characters of a terminal."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else " " if letter.isspace() else "\N{REPLACEMENT CHARACTER}"
        for letter in text
    )


def is_count(text: str) -> bool:
    """
    Whether text is a number from 0 on, as ``int`` takes it, of at most 18 digits.

    Not ``isdigit`` alone, which is true of a superscript, too; nor ``isdecimal``, of other scripts' digits.
    """
    return len(text) <= 18 and text.isascii() and text.isdecimal()


def _refuse(constant: str) -> Any:
    raise ValueError(f"it holds {constant}")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"it holds {digits[:20]}")
    return number
