"""Public names of a package that are imported when they are first used."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any


def lazy(
    package: str, names: Mapping[str, str], renamed: Mapping[str, str] | None = None
) -> Callable[[str], Any]:
    """
    The ``__getattr__`` of a package (PEP 562).

    Args:
        package: Its path.
        names: Public name -> where it is, ``module:name``.
        renamed: Public name of the last release -> that of today; using the old one warns.
    """

    def get(name: str) -> Any:
        if renamed and name in renamed:
            warnings.warn(
                f"{package}.{name} is {package}.{renamed[name]} now; "
                "the old name goes with the next release",
                DeprecationWarning,
                stacklevel=2,
            )
            return getattr(importlib.import_module(package), renamed[name])
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, _, attribute = names[name].partition(":")
        return getattr(importlib.import_module(module), attribute)

    return get
