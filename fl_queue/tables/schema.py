"""Declared columns of a table, and the form of a text file. No pyarrow here."""

from __future__ import annotations

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
