"""
Members of ``Strategy`` that have another name since the last release: own strategies may use the old ones.

This module goes with the next release.
"""

from __future__ import annotations

import warnings

#: Old name -> new name.
RENAMED = {
    "pull": "proximal_strength",
    "fewest": "min_updates",
    "takes_stale": "supports_async",
}


def adopt(cls: type) -> None:
    """Give a class that defines members by their old names the new ones, with a warning."""
    for old, new in RENAMED.items():
        if old not in vars(cls) or new in vars(cls):
            continue
        warnings.warn(
            f"{cls.__module__}.{cls.__qualname__}: {old} of a strategy is {new} now; "
            "the old name goes with the next release",
            DeprecationWarning,
            stacklevel=3,
        )
        setattr(cls, new, vars(cls)[old])
        # The old method may call super() by the old name.
        for parent in cls.__mro__[1:]:
            if new in vars(parent):
                setattr(parent, old, vars(parent)[new])
