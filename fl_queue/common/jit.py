"""
Loops compiled by numba, where there is one. Nothing is compiled, or imported, before it is asked for.

Signatures are texts of numba's types, so that no caller has to import it: half a second, which the
CLI has no use for. No fastmath, ever: it would let machines differ.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

_log = logging.getLogger(__name__)

Loop = Callable[..., Any]


def compiled(signatures: Mapping[Loop, str]) -> list[Loop]:
    """
    Compile loops, or load them from numba's cache; they do not check bounds, and release the GIL.

    Args:
        signatures: Python function -> numba signature such as ``void(int64[::1], float64)``.

    Returns:
        The compiled functions, in the same order. A division by zero gives Inf or NaN in them.

    Raises:
        ImportError: numba cannot be imported; numpy has to do.
    """
    import numba

    def compile_all(cache: bool) -> list[Loop]:
        return [
            numba.njit(text, nogil=True, error_model="numpy", cache=cache)(loop)
            for loop, text in signatures.items()
        ]

    try:
        return compile_all(cache=True)
    except (RuntimeError, OSError) as exc:  # no folder to cache in, or its disk is full
        _log.info("numba cannot cache its loops (%s): compiling at each start", exc)
        return compile_all(cache=False)
