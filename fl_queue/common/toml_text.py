"""TOML text of values and of nested tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tomli_w


def dumps(tables: Mapping[str, Any], multiline: bool = False) -> str:
    """
    Nested mappings as a TOML document without comments.

    Args:
        tables: Keys and values; a mapping becomes a table. Tuples are arrays.
        multiline: Write strings with line breaks between triple quotes.

    Raises:
        TypeError: A value has no TOML form, such as None.
    """
    return tomli_w.dumps(tables, multiline_strings=multiline)


def value_text(value: Any) -> str:
    """
    One value on one line, as it follows ``key =``.

    Raises:
        TypeError: As ``dumps``.
    """
    if isinstance(value, Mapping):
        items = [f"{_left_of(key)}{value_text(item)}" for key, item in value.items()]
        return f"{{ {', '.join(items)} }}" if items else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(value_text, value))}]"
    return tomli_w.dumps({"v": value}).removeprefix("v = ").rstrip("\n")


def _left_of(key: str) -> str:
    """A key, quoted where TOML requires it, with its equals sign."""
    return tomli_w.dumps({key: 0}).removesuffix("0\n")
