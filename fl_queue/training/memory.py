"""
Errors of memory that is not there, named by the part of a training that asked for it.

Imports torch. No Redis here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

import torch

from fl_queue.errors import OutOfMemory

#: Part of a training -> how it needs less.
_SMALLER = "lower train.batch_size, and raise train.accumulate for steps as large"
FIXES: Mapping[str, str] = MappingProxyType(
    {
        "the data": "read samples when they are asked for, or have the site use a machine with more memory",
        "the model": "build a smaller one, or have the site use a machine with more memory",
        "a batch": _SMALLER,
        "forward": _SMALLER,
        "backward": _SMALLER,
        "the optimizer": "use one that keeps less of each parameter, such as sgd or lion, or a smaller model",
        "the training": _SMALLER,
        "an evaluation": "lower train.evaluation_batch",
    }
)
#: What torch's allocators of a CPU and of other devices report, beside errors of a class of their own.
_ASKED = re.compile(r"tried to allocate (\d+(?:\.\d+)?)( bytes| [KMGT]iB)", re.IGNORECASE)
_TEXTS = ("can't allocate memory", "not enough memory", "out of memory")
_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


@contextmanager
def naming(part: str) -> Iterator[None]:
    """
    Name the part of a training that asks for memory within this block, unless one inside it is named.

    Args:
        part: A key of ``FIXES``.

    Raises:
        OutOfMemory: There was none.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as exc:
        named = error_of(exc, part)
        if named is None:
            raise
        raise named from exc


def error_of(error: BaseException, part: str) -> OutOfMemory | None:
    """An error with the part that asked for memory; None: it is of another kind. Args: ``part``: as of ``naming``."""
    text = str(error)
    is_lack = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and any(one in text for one in _TEXTS)
    )
    if not is_lack:
        return None
    found = _ASKED.search(text)
    asked = f", which asked for {_shown(found[1], found[2].strip())}" if found else ""
    return OutOfMemory(f"out of memory in {part}{asked}; {FIXES[part]}", public=True)


def _shown(number: str, unit: str) -> str:
    """An amount in the largest unit that gives 1 or more."""
    value, index = float(number), [one.lower() for one in _UNITS].index(unit.lower())
    while value >= 1024 and index + 1 < len(_UNITS):
        value, index = value / 1024, index + 1
    return f"{value:.1f} {_UNITS[index]}" if index else f"{value:.0f} bytes"
