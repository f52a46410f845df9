"""The one importer of pyarrow, which reads tables: only where it is used."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any


@cache
def pyarrow() -> Any:
    """
    The package ``pyarrow``.

    Raises:
        ImportError: It is not installed.
    """
    import pyarrow

    return pyarrow


@cache
def part(name: str) -> Any:
    """A module of pyarrow: ``csv``, ``parquet``, ``feather``, ``compute`` or ``json``; raises as ``pyarrow``."""
    return importlib.import_module(f"{pyarrow().__name__}.{name}")
