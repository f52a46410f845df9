"""
JSON that anybody may have written -> plain values and records of checked types. No Redis here.

Whatever the text is, ``MessageError`` is raised and nothing else.
"""

from __future__ import annotations

import json
import math
import types
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import MISSING, fields
from functools import cache
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from fl_queue.errors import MessageError

Record = TypeVar("Record")
#: Whether a value is of a type.
_Check = Callable[[Any], bool]


def loads(text: str | bytes, what: str) -> Any:
    """
    JSON as plain values. Args: ``what``: of what it is, for the error.

    Raises:
        MessageError: It is no JSON, holds NaN, Infinity or half a character, or is nested too deep.
    """
    try:
        value = json.loads(text, parse_constant=_refuse, parse_float=_finite)
        if "\\u" in text if isinstance(text, str) else b"\\u" in text:
            # Halves of characters, which nobody could store, come in escapes only.
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
    A dataclass from the map of its fields.

    Args:
        kind: Its annotations say what each field is: text, numbers, ``Literal``, lists and maps of
            such; ``Any`` is not looked at.
        raw: Exactly its fields, those with a default may be missing.

    Raises:
        MessageError: A field is missing, unknown, or of another type; names it.
    """
    if type(raw) is not dict:
        raise MessageError(f"not {what}: a {type(raw).__name__} instead of a map")
    checks, needed = _checks(cast(Hashable, kind))
    for name in raw:
        if name not in checks:
            raise MessageError(f"not {what}: field {name[:64]!r} is unknown")
        if not checks[name](raw[name]):
            raise MessageError(f"not {what}: field {name} is {str(raw[name])[:64]!r}")
    for name in needed:
        if name not in raw:
            raise MessageError(f"not {what}: field {name} is missing")
    return kind(**raw)


def fits(value: Any, hint: Any) -> bool:
    """Whether a plain value is of a type: text, numbers, ``Literal``, lists and maps of such."""
    return _check(hint)(value)


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
    """Text on one line, without halves of characters and whatever a terminal would obey."""
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


def is_text(value: Any) -> bool:
    """Whether a value is text that can be stored: JSON can hold halves of characters."""
    if type(value) is not str:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse(constant: str) -> Any:
    raise ValueError(f"it holds {constant}")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"it holds {digits[:20]}")
    return number


@cache
def _checks(kind: Hashable) -> tuple[dict[str, _Check], list[str]]:
    """How the fields of a dataclass are checked, and which have no default."""
    hints = get_type_hints(kind)
    items = fields(cast(Any, kind))
    needed = [
        item.name for item in items if item.default is MISSING and item.default_factory is MISSING
    ]
    return {item.name: _check(hints[item.name]) for item in items}, needed


def _check(hint: Any) -> _Check:
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return lambda value: True
    if hint is str:
        return is_text
    if hint is bool:
        return lambda value: type(value) is bool
    if hint is int:
        # type() and not isinstance(): a bool is an int to Python, and no count.
        return lambda value: type(value) is int and -(2**63) <= value < 2**64
    if hint is float:
        return lambda value: type(value) is float or (type(value) is int and abs(value) < 2**64)
    if hint is type(None):
        return lambda value: value is None
    if origin is Literal:
        return lambda value: type(value) is str and value in args
    if origin in (Union, types.UnionType):
        any_of = [_check(arg) for arg in args]
        return lambda value: any(check(value) for check in any_of)
    if origin in (list, Sequence):
        each = _check(args[0])
        return lambda value: type(value) is list and all(map(each, value))
    if origin in (dict, Mapping):
        key, inner = _check(args[0]), _check(args[1])
        return lambda value: (
            type(value) is dict and all(map(key, value)) and all(map(inner, value.values()))
        )
    raise TypeError(f"a record with a field of {hint}")
