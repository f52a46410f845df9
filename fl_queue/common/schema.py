"""
Checked records: a dataclass declares the fields, types and limits of a record, and its reader follows from it.

The annotation of a field is its type, or ``Annotated`` with limits::

    @dataclass(frozen=True)
    class Receipt:
        status: Literal["received", "accepted"]
        weight: Annotated[int, Range(0)] = 0
        metrics: Mapping[str, float] = field(default_factory=dict)

    receipt = schema.parse(Receipt, json.loads(text))

Values are plain data out of JSON or msgpack, and may be hostile. An error names the place of the first wrong
value, such as ``history[2].round``, and quotes no data. This is not ``msgspec``: importing that costs more
than parsing all records of a run, and its structs are neither replaced nor listed like dataclasses.
"""

from __future__ import annotations

import math
import re
import types
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from typing import (
    Annotated,
    Any,
    Literal,
    Protocol,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

Record = TypeVar("Record")
#: Makes a plain value one of a declared type, or raises ``Invalid``.
Reader = Callable[[Any], Any]

_MIN_INT, _INT_BOUND = -(2**63), 2**64


class Invalid(ValueError):
    """
    A value that its declaration does not allow.

    Args:
        reason: The rule that is broken; no data.
        place: Path to the value, from the record; empty: the record itself.
    """

    def __init__(self, reason: str, place: str = "") -> None:
        super().__init__(f"{place}: {reason}" if place else reason)
        self.reason, self.place = reason, place

    def inside(self, outer: str) -> Invalid:
        """The same error, seen from the value that holds this one."""
        link = "." if self.place and not self.place.startswith("[") else ""
        return Invalid(self.reason, f"{outer}{link}{self.place}")


# Limits


class Limit(Protocol):
    """A rule beside a type, given by ``Annotated``; it replaces the reader of the type alone."""

    def read(self, value: Any) -> Any:
        """The value, checked. Raises Invalid."""


@dataclass(frozen=True)
class Range:
    """A whole number from ``low`` to ``high``; a bool is none."""

    low: int = 0
    high: int = 2**63 - 1

    def read(self, value: Any) -> int:
        """The number. Raises Invalid."""
        if type(value) is not int:
            raise Invalid(f"is a {type(value).__name__}, not an integer")
        if not self.low <= value <= self.high:
            raise Invalid(f"is not {self.low} to {self.high}")
        return value


@dataclass(frozen=True)
class Finite:
    """A finite floating-point number, ``low`` or more; an integer is none."""

    low: float = -math.inf

    def read(self, value: Any) -> float:
        """The number. Raises Invalid."""
        if type(value) is not float or not (math.isfinite(value) and value >= self.low):
            more = "" if self.low == -math.inf else f", {self.low:g} or more"
            raise Invalid(f"is not a finite floating-point number{more}")
        return value


@dataclass(frozen=True)
class Length:
    """Text of at most ``max_length`` characters; ``printable``: fit for a terminal and a key's name."""

    max_length: int
    printable: bool = False

    def read(self, value: Any) -> str:
        """The text. Raises Invalid."""
        if type(value) is not str:
            raise Invalid(f"is a {type(value).__name__}, not text")
        if len(value) > self.max_length:
            raise Invalid(f"has {len(value)} characters, more than {self.max_length}")
        if self.printable and not value.isprintable():
            raise Invalid("holds characters that cannot be shown")
        return value


@dataclass(frozen=True)
class OneOf:
    """One of some texts."""

    choices: tuple[str, ...]

    def read(self, value: Any) -> str:
        """The text. Raises Invalid."""
        # isinstance() and not type(): of a record that was made here it is a member of an enum.
        if not isinstance(value, str) or value not in self.choices:
            raise Invalid(f"is not one of {', '.join(self.choices)}")
        return value


@dataclass(frozen=True)
class Pattern:
    """Text of a regular expression. Args: ``what``: the name of such a text, for the error."""

    expression: re.Pattern[str]
    what: str

    def read(self, value: Any) -> str:
        """The text. Raises Invalid."""
        if type(value) is not str or self.expression.fullmatch(value) is None:
            raise Invalid(f"is not {self.what}")
        return value


@dataclass(frozen=True)
class PlainData:
    """
    A map of free form: text, numbers, booleans and null, in lists and maps.

    Args:
        max_items: Values (map entries and list items) it may hold.
        max_length: Characters of a text or key.
        max_depth: Levels of lists and maps.
        finite: Whether NaN and infinity are refused.
    """

    max_items: int
    max_length: int
    max_depth: int
    finite: bool = True

    def read(self, value: Any) -> dict[str, Any]:
        """The map. Raises Invalid."""
        if type(value) is not dict:
            raise Invalid(f"is a {type(value).__name__}, not a map")
        if self._count(value, self.max_depth) > self.max_items:
            raise Invalid(f"holds more than {self.max_items} values")
        return value

    def _count(self, value: Any, depth: int) -> int:
        """Count the values in it, itself included; raises Invalid unless all of them are allowed."""
        kind = type(value)
        if kind is not dict and kind is not list:
            self._check_scalar(value)
            return 1
        if depth == 0:
            raise Invalid(f"is nested deeper than {self.max_depth} levels")
        items = value
        if kind is dict:
            for key in value:
                Length(self.max_length).read(key)
            items = value.values()
        return 1 + sum(self._count(item, depth - 1) for item in items)

    def _check_scalar(self, value: Any) -> None:
        if value is None or type(value) is bool:
            return
        if type(value) is str:
            Length(self.max_length).read(value)
        elif type(value) is int:
            if not _MIN_INT <= value < _INT_BOUND:
                raise Invalid("takes more than 64 bits")
        elif type(value) is not float:
            raise Invalid(f"holds a {type(value).__name__}")
        elif self.finite and not math.isfinite(value):
            raise Invalid("holds a number that is not finite")


@dataclass(frozen=True)
class Custom:
    """A limit of one's own. Args: ``function``: takes the value, returns it checked, or raises ``Invalid``."""

    function: Reader

    def read(self, value: Any) -> Any:
        """The function's result. Raises Invalid."""
        return self.function(value)


# Reading


def parse(kind: type[Record], raw: Any, optional: frozenset[str] | None = None) -> Record:
    """
    A record from the map of its fields.

    Args:
        kind: A dataclass.
        optional: Fields that may be missing, and then have their default; None: all that have one. It
            counts for records in this one, too.

    Raises:
        Invalid: A field is missing, unknown, of another type, or out of its limits.
    """
    return cast(Record, _record_reader(cast(Hashable, kind), optional)(raw))


def check(hint: Any, value: Any) -> Any:
    """A plain value of a declared type. Raises Invalid."""
    return reader(hint)(value)


def fits(value: Any, hint: Any) -> bool:
    """Whether a plain value is of a declared type."""
    try:
        check(hint, value)
    except Invalid:
        return False
    return True


@cache
def reader(hint: Any, optional: frozenset[str] | None = None) -> Reader:
    """
    The reader of a type: text, numbers, ``Literal``, enums, dataclasses, lists and maps of such.

    Args:
        optional: As of ``parse``.
    """
    origin, args = get_origin(hint), get_args(hint)
    if hint in _SIMPLE:
        return _SIMPLE[hint]
    if origin is Annotated:
        return cast(Limit, args[1]).read
    if is_dataclass(hint):
        return _record_reader(cast(Hashable, hint), optional)
    if origin is Literal:
        return _choice_reader({choice: choice for choice in args})
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _choice_reader({member.value: member for member in hint})
    if origin in (Union, types.UnionType):
        return _union_reader(args, optional)
    if origin in (list, tuple, Sequence):
        return _list_reader(reader(args[0], optional), tuple if origin is tuple else list)
    if origin in (dict, Mapping):
        return _map_reader(reader(args[0], optional), reader(args[1], optional))
    raise TypeError(f"a record with a field of {hint}")


@cache
def _record_reader(kind: Hashable, optional: frozenset[str] | None) -> Reader:
    made = cast(type[Any], kind)
    hints = get_type_hints(made, include_extras=True)
    items = fields(made)
    readers = {item.name: reader(hints[item.name], optional) for item in items}
    with_default = {
        item.name
        for item in items
        if item.default is not MISSING or item.default_factory is not MISSING
    }
    needed = [
        name
        for name in readers
        if name not in (with_default if optional is None else optional & with_default)
    ]

    def read(raw: Any) -> Any:
        if type(raw) is not dict:
            raise Invalid(f"is a {type(raw).__name__}, not a map")
        values = {}
        for name, value in raw.items():
            read_field = readers.get(name)
            if read_field is None:
                raise Invalid("is unknown", _shown(name))
            try:
                values[name] = read_field(value)
            except Invalid as exc:
                raise exc.inside(name) from None
        for name in needed:
            if name not in raw:
                raise Invalid("is missing", name)
        return made(**values)

    return read


def _shown(name: Any) -> str:
    text = str(name)[:64]
    return text if text.isascii() and text.isidentifier() else repr(text)


def _list_reader(read_item: Reader, made: type[Any]) -> Reader:
    def read(value: Any) -> Any:
        if type(value) is not list:
            raise Invalid(f"is a {type(value).__name__}, not a list")
        index = 0
        try:
            items = []
            for item in value:
                items.append(read_item(item))
                index += 1
        except Invalid as exc:
            raise exc.inside(f"[{index}]") from None
        return items if made is list else made(items)

    return read


def _map_reader(read_key: Reader, read_value: Reader) -> Reader:
    def read(value: Any) -> dict[Any, Any]:
        if type(value) is not dict:
            raise Invalid(f"is a {type(value).__name__}, not a map")
        try:
            return {read_key(key): read_value(item) for key, item in value.items()}
        except Invalid:
            for key, item in value.items():
                try:
                    read_key(key)
                    read_value(item)
                except Invalid as exc:
                    raise exc.inside(_shown(key)) from None
            raise

    return read


def _choice_reader(choices: Mapping[str, Any]) -> Reader:
    names = ", ".join(map(str, choices))

    def read(value: Any) -> Any:
        if not isinstance(value, str) or value not in choices:
            raise Invalid(f"is not one of {names}")
        return choices[value]

    return read


#: Of the types of a union, in which they are tried: a whole number is no float first, and what is left is no text.
_RANKS: Mapping[Any, int] = {bool: 0, int: 1, float: 2, str: 4}
_OTHER_RANK = 3


def _union_reader(args: tuple[Any, ...], optional: frozenset[str] | None) -> Reader:
    # Python takes int | str and str | int for equal, so one reader serves both: its order must be that of neither.
    ordered = sorted(args, key=lambda arg: (_RANKS.get(arg, _OTHER_RANK), repr(arg)))
    readers = [reader(arg, optional) for arg in ordered if arg is not type(None)]
    is_optional = len(readers) < len(args)

    def read(value: Any) -> Any:
        if value is None and is_optional:
            return None
        # All but the last: a value that none of them takes has the error of the last.
        for read_value in readers[:-1]:
            try:
                return read_value(value)
            except Invalid:
                continue
        return readers[-1](value)

    return read


def is_text(value: Any) -> bool:
    """Whether a value is text that can be stored: JSON can hold halves of characters."""
    if type(value) is not str:
        return False
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_text(value: Any) -> str:
    if type(value) is str and (value.isascii() or is_text(value)):
        return value
    if type(value) is str:
        raise Invalid("has half a character")
    raise Invalid(f"is a {type(value).__name__}, not text")


def _read_int(value: Any) -> int:
    # type() and not isinstance(): a bool is an int to Python, and no count.
    if type(value) is not int:
        raise Invalid(f"is a {type(value).__name__}, not an integer of 64 bits")
    if not _MIN_INT <= value < _INT_BOUND:
        raise Invalid("is not an integer of 64 bits")
    return value


def _read_float(value: Any) -> float:
    if type(value) is not float and type(value) is not int:
        raise Invalid(f"is a {type(value).__name__}, not a number")
    if type(value) is int and abs(value) >= _INT_BOUND:
        raise Invalid("is not an integer of 64 bits")
    return cast(float, value)


def _read_bool(value: Any) -> bool:
    if type(value) is not bool:
        raise Invalid(f"is a {type(value).__name__}, not true or false")
    return value


def _read_any(value: Any) -> Any:
    return value


_SIMPLE: dict[Any, Reader] = {
    Any: _read_any,
    str: _read_text,
    int: _read_int,
    float: _read_float,
    bool: _read_bool,
}
