"""Declared columns of a table, and the form of a text file. No pyarrow here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal["number", "integer", "boolean", "date", "category", "text"]
#: What a feature may be.
KINDS: tuple[Kind, ...] = get_args(Kind)[:-1]
#: Cells that are no value, unless ``task.missing`` has others.
NOTHING = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "?")
DELIMITERS = {",": ",", ";": ";", "tab": "\t", "|": "|"}
#: Code of a missing category, and what is added to the number of levels for a level that is not declared.
MISSING, OTHER = -1, 0
#: Cells of a boolean.
TRUE = ("true", "True", "TRUE", "yes", "Yes", "YES", "1")
FALSE = ("false", "False", "FALSE", "no", "No", "NO", "0")


#: Spellings of the levels of a category of true and false: a typed file has others than a text file.
_SPELLINGS = (("true", "True", "TRUE"), ("false", "False", "FALSE"))


def codes_of(levels: Sequence[str]) -> dict[str, int]:
    """Text -> the code of its level; `true` is `True` where only one of them is a level."""
    found = {level: code for code, level in enumerate(levels)}
    for spellings in _SPELLINGS:
        listed = [found[one] for one in spellings if one in found]
        if len(listed) == 1:
            found |= dict.fromkeys(spellings, listed[0])
    return found


@dataclass(frozen=True)
class Column:
    """
    A column that is read.

    Args:
        name: In the header.
        kind: ``number`` (finite), ``integer`` (a whole number), ``boolean``, ``date`` (ISO 8601: 2024-02-29, with or
            without a time of day), ``category``, or ``text``.
        levels: Of a category, in the order of their codes.
        is_required: Whether a missing value is an error.
        is_closed: Whether another level of a category is an error.
    """

    name: str
    kind: Kind = "number"
    levels: tuple[str, ...] = ()
    is_required: bool = False
    is_closed: bool = False


@dataclass(frozen=True)
class TableForm:
    """
    The form of a text file.

    Args:
        delimiter: Between cells: ``,``, ``;``, ``tab`` or ``|``; empty: detected.
        decimal: ``.`` or ``,``; empty: detected.
        missing: Cells that are no value.
    """

    delimiter: str = ""
    decimal: str = ""
    missing: tuple[str, ...] = NOTHING
