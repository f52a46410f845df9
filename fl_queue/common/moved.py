"""Old import paths that were documented: one release long they lead to the new place, with a warning."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any


def moved(old: str, new: str, only: str = "") -> Callable[[str], Any]:
    """
    The ``__getattr__`` of a module that has moved.

    Args:
        old: Its path until now.
        new: Where its names are.
        only: The one name that is looked for there; empty: any.
    """

    def get(name: str) -> Any:
        if name.startswith("__") or only not in ("", name):
            raise AttributeError(f"module {old!r} has no attribute {name!r}")
        found = getattr(importlib.import_module(new), name)
        warnings.warn(
            f"{old}.{name} is {new}.{name} now; the old path goes with the next release",
            DeprecationWarning,
            stacklevel=2,
        )
        return found

    return get
