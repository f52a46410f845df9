"""
One config value: its type, range, default and documentation, and how a value is checked.

Used for the fields of ``RunConfig`` and for the options of built-in tasks. No files here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from fl_queue.common.spelling import nearest
from fl_queue.errors import ConfigError

Check = Callable[[Any], str | None]


@dataclass(frozen=True)
class Option:
    """
    Type and limits of one config value.

    Args:
        kind: ``int``, ``float`` (takes whole numbers too), ``bool``, ``str``, ``share`` (a count
            as a whole number, or a fraction in (0, 1] with a decimal point), ``rate`` (a number,
            or a schedule ``[[round, number], ...]``), ``ints``, ``floats`` or ``strs``
            (a list), or ``table`` (keys with values of any kind).
        default: Value when nothing is given.
        doc: One line for users: meaning, unit and range.
        low, high: Inclusive bounds of a number, or of each number in a list.
        above: Exclusive lower bound.
        choices: The only values allowed.
        aliases: Other name of a choice -> the choice, which is what is recorded.
        check: Extra check; returns what is wrong, or None.
        newer: It is recorded with a run only where it differs from its default: a worker of an older release
            refuses an option that it does not know, and configs without it keep their digests.
    """

    kind: str
    default: Any
    doc: str
    low: float | None = None
    high: float | None = None
    above: float | None = None
    choices: tuple[str, ...] = ()
    check: Check | None = None
    newer: bool = False
    aliases: Mapping[str, str] = field(default_factory=dict)

    def parse(self, name: str, value: Any) -> Any:
        """
        The value in its canonical type.

        Raises:
            ConfigError: ``name`` has the wrong type or is out of range.
        """
        parsed = _PARSERS[self.kind](name, value)
        if isinstance(parsed, str):
            parsed = self.aliases.get(parsed, parsed)
        for number in _numbers(parsed):
            self._check_range(name, number)
        if self.choices and parsed not in self.choices:
            raise ConfigError(
                name,
                f"{parsed!r} is not one of {', '.join(map(_as_word, self.choices))}{nearest(str(parsed), [*self.choices, *self.aliases])}",
            )
        problem = self.check(parsed) if self.check else None
        if problem:
            raise ConfigError(name, problem)
        return parsed

    def _check_range(self, name: str, number: float) -> None:
        if self.low is not None and number < self.low:
            raise ConfigError(name, f"{number:g} is too small; it must be at least {self.low:g}")
        if self.above is not None and number <= self.above:
            raise ConfigError(name, f"{number:g} is too small; it must be more than {self.above:g}")
        if self.high is not None and number > self.high:
            raise ConfigError(name, f"{number:g} is too large; it must be at most {self.high:g}")


class OptionTable(Mapping[str, Any]):
    """
    A read-only table of a config, for a field whose keys depend on another field.

    Args:
        items: Keys and values; a list among the values is kept as a tuple.
    """

    def __init__(self, items: Mapping[str, Any] | None = None) -> None:
        self._items = {key: _frozen(value) for key, value in (items or {}).items()}

    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(frozenset(self._items))

    def __repr__(self) -> str:
        return f"OptionTable({self._items!r})"


def _as_word(choice: str) -> str:
    """A choice in a list: in quotes, if it is empty or a mark such as a comma."""
    return choice if choice[:1].isalnum() else repr(choice)


def _frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        return OptionTable(value)
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def check_travels(field: str, value: Any) -> None:
    """Raises ConfigError: a config travels as JSON, which has no dates and no NaN."""
    if isinstance(value, Mapping | list | tuple):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, item in items:
            check_travels(f"{field}.{key}", item)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(field, f"{value} is no number that can be used; give a finite one")
    elif not isinstance(value, str | int | float):
        raise ConfigError(
            field, f"a {type(value).__name__} does not travel; write it as text, in quotes"
        )


def unknown_key(name: str, known: Iterable[str]) -> ConfigError:
    """The error for a key that does not exist, naming the nearest that does."""
    known = list(known)
    return ConfigError(
        name,
        f"there is no such field{nearest(name, known) or '; known: ' + ', '.join(sorted(known))}",
        public="there is no such field",
    )


def _numbers(value: Any) -> list[float]:
    if isinstance(value, bool | str | Mapping):
        return []
    if isinstance(value, tuple):
        items = [pair[1] if isinstance(pair, tuple) else pair for pair in value]
        return [item for item in items if not isinstance(item, str)]
    return [value]


def _wrong(name: str, value: Any, wanted: str) -> ConfigError:
    return ConfigError(name, f"{value!r} is not {wanted}")


def _int(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong(name, value, "a whole number")
    return value


def _float(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(name, value, "a number")
    if value != value or value in (float("inf"), float("-inf")):
        raise _wrong(name, value, "a finite number")
    return float(value)


def _bool(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _wrong(name, value, "true or false")
    return value


def _str(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _wrong(name, value, "text in quotes")
    return value


def _share(name: str, value: Any) -> int | float:
    if isinstance(value, float):
        if not 0.0 < value <= 1.0:
            raise _wrong(name, value, "a fraction in (0, 1] (for a count, write a whole number)")
        return value
    count = _int(name, value)
    if count < 1:
        raise _wrong(name, value, "a count of at least 1 (or a fraction such as 0.5)")
    return count


def _rate(name: str, value: Any) -> float | tuple[tuple[int, float], ...]:
    if not isinstance(value, list | tuple):
        return _float(name, value)
    pairs = []
    for pair in value:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise _wrong(name, value, "a number or a schedule such as [[1, 0.1], [20, 0.01]]")
        pairs.append((_int(name, pair[0]), _float(name, pair[1])))
    if (
        not pairs
        or pairs[0][0] != 1
        or sorted({first for first, _ in pairs}) != [first for first, _ in pairs]
    ):
        raise _wrong(name, value, "a schedule whose rounds rise from 1")
    return tuple(pairs)


def _ints(name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list | tuple):
        raise _wrong(name, value, "a list of whole numbers")
    return tuple(_int(name, item) for item in value)


def _strs(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise _wrong(name, value, "a list of texts")
    return tuple(_str(name, item) for item in value)


def _floats(name: str, value: Any) -> tuple[float, ...]:
    if not isinstance(value, list | tuple):
        raise _wrong(name, value, "a list of numbers")
    return tuple(_float(name, item) for item in value)


def _table(name: str, value: Any) -> OptionTable:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise _wrong(name, value, "a table such as { betas = [0.9, 0.95] }")
    for key, item in value.items():
        check_travels(f"{name}.{key}", item)
    return OptionTable(value)


_PARSERS: dict[str, Callable[[str, Any], Any]] = {
    "int": _int,
    "float": _float,
    "bool": _bool,
    "str": _str,
    "share": _share,
    "rate": _rate,
    "ints": _ints,
    "floats": _floats,
    "strs": _strs,
    "table": _table,
}


def as_plain(value: Any) -> Any:
    """A value of a config as JSON and TOML have it: dictionaries and lists."""
    if isinstance(value, Mapping):
        return {key: as_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_plain(item) for item in value]
    return value
