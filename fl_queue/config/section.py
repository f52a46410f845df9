"""
Base class of the config's sections: each field is declared once, with its type, default, limits and text.

Validation, ``config/default.toml``, ``docs/reference/config.md`` and the fields that a run keeps are derived from these
declarations.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeVar, get_args, get_type_hints

from fl_queue.common.options import Check, Option, OptionTable, as_plain, unknown_key

#: A count as a whole number, or a fraction in (0, 1] with a decimal point.
Share = int | float
#: A number, or a schedule of (first round, number).
Rate = float | tuple[tuple[int, float], ...]

#: Type of a field -> kind of ``Option`` that parses it. A ``Literal`` is text with choices.
_KINDS: Mapping[Any, str] = {
    bool: "bool",
    int: "int",
    float: "float",
    str: "str",
    Share: "share",
    Rate: "rate",
    OptionTable: "table",
    tuple[int, ...]: "ints",
    tuple[str, ...]: "strs",
}

#: Section -> its options, once they were asked for.
_OPTIONS: dict[type, Mapping[str, Option]] = {}
_USES: dict[type, Mapping[str, Use]] = {}

T = TypeVar("T")


def option(
    default: T,
    doc: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    check: Check | None = None,
    use: Use | None = None,
    aliases: Mapping[str, str] | None = None,
) -> T:
    """
    Declare a field of a section; kind and choices follow from the field's annotation.

    Args:
        default: Value when nothing is given.
        doc: One line for users: meaning, unit and range.
        low, high, above, check, aliases: As for ``Option``.
        use: Where the field differs from others in how a run uses it.
    """
    bounds: dict[str, Any] = {"low": low, "high": high, "above": above, "check": check}
    if aliases:
        bounds["aliases"] = aliases
    return field(default=default, metadata={"doc": doc, "bounds": bounds, "use": use or Use()})


@dataclass(frozen=True)
class Use:
    """
    Use of a field by a run.

    Args:
        fixed: A continued run keeps the value it began with.
        local: It belongs to the machine that reads the config and is not recorded with the run.
        mode: The only ``round.mode`` in which it has a meaning; empty: both.
        instead: What the other mode has in its place.
        newer: It is recorded only where it differs from its default: a worker of an older release refuses a
            field that it does not know, and configs without it keep their digests.
    """

    fixed: bool = False
    local: bool = False
    mode: str = ""
    instead: str = ""
    newer: bool = False


#: A field that decides which samples are whose, or what an earlier version was made of.
FIXED = Use(fixed=True)
LOCAL = Use(local=True)
#: A field that releases before this one did not have.
NEWER = Use(newer=True)


if TYPE_CHECKING:
    # Type checkers see attributes only, so that no code of the package reads by key.
    _StringKeys = object
else:

    class _StringKeys(Mapping):
        """Reading a section as a mapping, ``config.run.rounds``: until the next release."""

        def __getitem__(self, key: str) -> Any:
            if key not in self.options():
                raise KeyError(key)
            warnings.warn(
                f'config sections are objects now: write .{key} instead of ["{key}"]; '
                "reading them as mappings goes with the next release",
                DeprecationWarning,
                stacklevel=2,
            )
            return getattr(self, key)

        def __iter__(self) -> Iterator[str]:
            return iter(self.options())

        def __len__(self) -> int:
            return len(self.options())


class Section(_StringKeys):
    """
    One table of a config.

    A subclass is a frozen dataclass: its docstring is the section's text, its fields are ``option()``.
    """

    NAME: ClassVar[str]

    @classmethod
    def doc(cls) -> str:
        """Description of the section, in one line."""
        return (cls.__doc__ or "").strip()

    @classmethod
    def options(cls) -> Mapping[str, Option]:
        """Field name -> its type, default, limits and text."""
        if cls not in _OPTIONS:
            _OPTIONS[cls] = MappingProxyType(_declared(cls))
        return _OPTIONS[cls]

    @classmethod
    def uses(cls) -> Mapping[str, Use]:
        """Field name -> how a run uses it."""
        if cls not in _USES:
            declared: Any = cls  # A dataclass, as every subclass is.
            _USES[cls] = {item.name: item.metadata["use"] for item in fields(declared)}
        return _USES[cls]

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> Self:
        """
        The section with the given values checked, and defaults for the others.

        Raises:
            ConfigError: Names the first field that cannot be used, and the fix.
        """
        known = cls.options()
        for key in given:
            if key not in known:
                raise unknown_key(f"{cls.NAME}.{key}", [f"{cls.NAME}.{name}" for name in known])
        return cls(
            **{
                key: known[key].parse(f"{cls.NAME}.{key}", given[key])
                for key in known
                if key in given
            }
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON and TOML have them."""
        return {name: as_plain(getattr(self, name)) for name in self.options()}


def _declared(cls: Any) -> dict[str, Option]:
    types = get_type_hints(cls)
    found = {}
    for item in fields(cls):
        kind, choices = _kind(types[item.name])
        found[item.name] = Option(
            kind, item.default, item.metadata["doc"], choices=choices, **item.metadata["bounds"]
        )
    return found


def _kind(annotation: Any) -> tuple[str, tuple[str, ...]]:
    """Kind and choices of an option by its annotation."""
    if getattr(annotation, "__origin__", None) is Literal:
        return "str", get_args(annotation)
    return _KINDS[annotation], ()
