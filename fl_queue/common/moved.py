"""Old import paths that were documented: one release long they lead to the new place, with a warning."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any


def moved(
    old: str, new: str, only: str = "", renamed: Mapping[str, str] | None = None
) -> Callable[[str], Any]:
    """
    The ``__getattr__`` of a module that has moved.

    Args:
        old: Its path until now.
        new: Where its names are.
        only: The one name that is looked for there; empty: any.
        renamed: Names that are others at the new place.
    """

    def get(name: str) -> Any:
        if name.startswith("__") or only not in ("", name):
            raise AttributeError(f"module {old!r} has no attribute {name!r}")
        today = (renamed or {}).get(name, name)
        found = getattr(importlib.import_module(new), today)
        warnings.warn(
            f"{old}.{name} is {new}.{today} now; the old path goes with the next release",
            DeprecationWarning,
            stacklevel=2,
        )
        return found

    return get
