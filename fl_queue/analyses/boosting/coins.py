"""
Coins of rows: the same for equal rows, wherever they are.

A row's digest is of its cells and its target alone, so any split of the rows over sites takes the same ones.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

Digests = npt.NDArray[np.uint64]

#: A coin of its own, beside those of the iterations.
VALIDATION = 1 << 40
_GOLDEN = 0x9E3779B97F4A7C15
_WORD = (1 << 64) - 1


def digests(columns: Iterable[npt.NDArray[np.uint64]], rows: int) -> Digests:
    """
    Digests of rows, (N,).

    Args:
        columns: (N,) bits of each cell, column after column.
        rows: N.
    """
    found = np.zeros(rows, np.uint64)
    for column in columns:
        found = _mixed((found ^ column) + np.uint64(_GOLDEN))
    return found


def taken(found: Digests, seed: int, draw: int, share: float) -> npt.NDArray[np.bool_]:
    """
    The rows that a draw takes, (N,).

    Args:
        found: Of ``digests``.
        seed: Of the run.
        draw: Number of the draw.
        share: Of the rows, about.
    """
    key = np.full(1, (seed * _GOLDEN + draw) & _WORD, np.uint64)
    mixed = _mixed(found ^ _mixed(key))
    taken_: npt.NDArray[np.bool_] = (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53 < share
    return taken_


def _mixed(words: Digests) -> Digests:
    """The finaliser of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014)."""
    words = (words ^ words >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ words >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return words ^ words >> np.uint64(31)
