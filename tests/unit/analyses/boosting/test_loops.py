"""Loops over rows: the same compiled and as they are written."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np

from fl_queue.analyses.boosting import loops


def _results(kernels: loops.Loops) -> list[list[int | float]]:
    rng = np.random.default_rng(0)
    bins = rng.integers(0, 4, (40, 3)).astype(np.uint8)
    starts, words = np.array([0, 4, 8]), rng.integers(-(1 << 40), 1 << 40, (2, 40))
    found = np.zeros((12, 3), np.int64)
    kernels.add_rows(bins, words[0], words[1], starts, found)
    sides = np.zeros(256, np.uint8)
    sides[:2] = 1
    divided = np.zeros(40, np.int32)
    left = kernels.divide(bins, 1, sides, divided)
    margins = np.zeros(40, np.float32)
    weights = np.array([0.0, 0.25, -0.5], np.float32)
    kernels.add_leaves(
        bins, np.array([2, 0, 0]), np.array([1, 0, 0]), np.tile(sides, (3, 1)), weights, margins
    )
    rest, ends = np.zeros(1, np.int64), np.zeros(8, np.int64)
    groups = kernels.close_groups(np.array([[3, 3, 0, 0, 9, 1, 0, 1]]), 5, rest, ends)
    arrays = (found, divided, margins, rest, ends)
    return [array.ravel().tolist() for array in arrays] + [[int(left), int(groups)]]


def test_loops_as_they_are_written_have_the_same_result() -> None:
    """Where numba cannot be imported they run so."""
    written = loops.Loops(loops.add_rows, loops.divide, loops.add_leaves, loops.close_groups)
    compiled = loops.loops()
    assert all(
        getattr(compiled, field.name) is not getattr(written, field.name)
        for field in dataclasses.fields(written)
    )
    assert _results(compiled) == _results(written)


def test_rows_are_joined_from_the_first_cell_on() -> None:
    """A group ends with the cell that makes it of five rows or more."""
    rest, ends = np.zeros(1, np.int64), np.zeros(8, np.int64)
    counts = np.array([[3, 3, 0, 0, 9, 1, 0, 1]])
    assert loops.close_groups(counts, 5, rest, ends) == 2
    assert (ends[:2].tolist(), rest.tolist()) == ([1, 4], [2])


def test_importing_trees_compiles_nothing() -> None:
    """The commands import them, and numba takes half a second."""
    code = "import sys, fl_queue.analyses.trees; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
