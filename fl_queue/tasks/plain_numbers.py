"""Numbers that a task returns, as Python's own: those of numpy and torch do not travel. Imports torch; no Redis here."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from fl_queue.protocol.header import MAX_MAP_ITEMS

_log = logging.getLogger(__name__)

#: Python's own numbers, and not what is derived from them.
_PLAIN = frozenset((int, float))
_ARRAYS = (np.generic, np.ndarray, torch.Tensor)


def number(value: Any) -> Any:
    """A number of any kind, or an array of exactly one, as an int or a float; anything else as it is."""
    if type(value) in _PLAIN:
        return value
    kind = _kind(value)
    if kind and int(np.prod(value.shape)) == 1:
        # A float of numpy's may be longer than Python's.
        return int(value.item()) if kind == "i" else float(value.item())
    if isinstance(value, (*_ARRAYS, bool)):
        return value
    # A member of an enum is of a subclass, which no header takes.
    if isinstance(value, int):
        return int(value)
    return float(value) if isinstance(value, float) else value


def table(value: Any) -> Any:
    """An array of numbers, or lists of them, as lists of Python's own; anything else as it is."""
    if isinstance(value, (list, tuple)):
        return list(value) if are_plain(value) else [table(item) for item in value]
    if not _kind(value) or not value.shape:
        return number(value)
    # More than a header takes is refused anyway; it need not become a list first.
    return value.tolist() if int(np.prod(value.shape)) <= MAX_MAP_ITEMS else value


def are_plain(values: Collection[Any]) -> bool:
    """Whether all are Python's own numbers already; a histogram of a thousand is looked at in every epoch."""
    return _PLAIN.issuperset(map(type, values))


def names(value: Any) -> Any:
    """Plain values of a description of data: an array as a list, a single number as text; anything else as it is."""
    if isinstance(value, _ARRAYS):
        value = value.tolist()
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return str(value) if is_number else value


def is_finite(value: float) -> bool:
    """Whether it is finite as a float, too."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


@lru_cache(maxsize=64)
def say_left_out(who: str, name: str) -> None:
    """Log once in a process that a metric is left out, without its value."""
    _log.warning(
        "%s returned %s, which is not finite or beyond 1e200: it is left out of the metrics",
        who,
        name,
    )


def _kind(value: Any) -> str:
    """``i`` or ``f`` of an array of whole numbers or of others; empty: it is no array of numbers."""
    if isinstance(value, torch.Tensor):
        # A sparse or quantised one, or one without memory, is none whose numbers can be read as they are.
        readable = value.layout == torch.strided and not value.is_quantized and not value.is_meta
        if not readable or value.is_complex() or value.dtype == torch.bool:
            return ""
        return "f" if value.is_floating_point() else "i"
    if isinstance(value, (np.generic, np.ndarray)) and value.dtype.kind in "iuf":
        return "f" if value.dtype.kind == "f" else "i"
    return ""
