"""Order of the words of a report, and the grid on which sums of fractions are whole numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from fl_queue.protocol.arrays import Int64s

#: Probabilities and losses of a row are rounded to multiples of 2**-30.
GRID_BITS = 30
#: Groups of rows by their probability.
TWENTIETHS = 20


class Words:
    """
    Names and shapes of the parts of a report.

    Args:
        shapes: Part -> its shape, in the order in which they follow each other.
    """

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        self._shapes: Mapping[str, tuple[int, ...]] = shapes
        self.size = sum(prod(shape) for shape in shapes.values())

    def packed(self, parts: Mapping[str, Any]) -> list[int]:
        """The words of all parts. Args: ``parts``: of each an array, or nested lists, of its shape."""
        found: list[int] = []
        for name, shape in self._shapes.items():
            found += np.asarray(parts[name], np.int64).reshape(prod(shape)).tolist()
        return found

    def parts(self, words: Sequence[int]) -> dict[str, list[Any]]:
        """Part -> its numbers: Python's, which a sum of many sites does not overflow."""
        found: dict[str, list[Any]] = {}
        start = 0
        for name, shape in self._shapes.items():
            stop = start + prod(shape)
            flat = [int(word) for word in words[start:stop]]
            start = stop
            width = shape[-1]
            rows = [flat[at : at + width] for at in range(0, len(flat), width)]
            found[name] = rows if len(shape) > 1 else flat
        return found


def on_grid(values: Any) -> Int64s:
    """Fractions as whole numbers, each rounded once, half to even."""
    found: Int64s = np.rint(np.ldexp(np.asarray(values, np.float64), GRID_BITS)).astype(np.int64)
    return found


def off_grid(total: Any) -> Any:
    """The fractions, or a sum of them, of which these are whole numbers."""
    return total / (1 << GRID_BITS)
