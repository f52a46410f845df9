"""A tree that grows at a site: its rows by node, and the histograms of its open nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fl_queue.analyses.boosting import joining
from fl_queue.analyses.boosting.grid import Grid
from fl_queue.analyses.boosting.loops import SIDES, loops
from fl_queue.analyses.boosting.nodes import Split
from fl_queue.errors import PolicyRefusal
from fl_queue.protocol.arrays import Int64s, Octets

Rows = npt.NDArray[np.int32]


@dataclass
class _Node:
    """
    An open node.

    Args:
        bins: (n, F) of the rows that are in it. They are copied at each split: rows that lie apart are read at a
            quarter of the speed.
        gradients, hessians: (n,) integers.
        histogram: (cells, 3) sums of gradients and hessians, and counts.
        cells: (cells,) of each cell the one that its rows are counted in.
    """

    bins: Octets
    gradients: Int64s
    hessians: Int64s
    histogram: Int64s
    cells: Int64s

    def part(self, rows: Rows, histogram: Int64s) -> _Node:
        """A child. Args: ``rows``: places of its rows."""
        return _Node(
            self.bins.take(rows, axis=0),
            self.gradients[rows],
            self.hessians[rows],
            histogram,
            self.cells,
        )


class Growth:
    """
    The open nodes of a tree, from its root on.

    Args:
        grid: The columns' cells.
        bins: (N, F) of all rows.
        gradients, hessians: (N,) integers.
        rows: (n,) ascending: the rows that the tree is made of.
        least: Fewest rows of a node in a cell that is shown; 1: any.
    """

    def __init__(
        self,
        grid: Grid,
        bins: Octets,
        gradients: Int64s,
        hessians: Int64s,
        rows: Rows,
        least: int,
    ) -> None:
        self._grid, self._least = grid, least
        if len(rows) < least:
            rows = rows[:0]
        cells = np.arange(grid.cells)
        root = _Node(bins, gradients, hessians, np.zeros(0, np.int64), cells)
        if len(rows) < len(bins):
            root = root.part(rows, root.histogram)
        root.histogram = self._histogram(root)
        self._join([root])
        self._open = [root]

    def sums(self) -> Int64s:
        """
        What is shown of the open nodes, (nodes, cells, 2): sums of gradients and hessians by joined cell.

        Raises:
            PolicyRefusal: A cell has few rows. It does not happen: it is looked at again before anything leaves.
        """
        found = np.empty((len(self._open), self._grid.cells, 2), np.int64)
        for place, node in enumerate(self._open):
            shown = self._shown(node)
            self._check(shown[:, 2], len(node.bins))
            found[place] = shown[:, :2]
        return found

    def split(self, splits: Sequence[Split | None]) -> None:
        """Go on to the children of the open nodes. Args: ``splits``: of each, None: it is a leaf."""
        children: list[_Node] = []
        for node, split in zip(self._open, splits, strict=True):
            if split is not None:
                pair = self._children(node, split)
                self._join(pair)
                children += pair
        self._open = children

    @property
    def rows(self) -> list[int]:
        """Number of rows of each open node."""
        return [len(node.bins) for node in self._open]

    def _children(self, node: _Node, split: Split) -> list[_Node]:
        start, stop = self._grid.starts[split.column : split.column + 2]
        sides = np.zeros(SIDES, np.uint8)
        by_value = split.sides(self._grid)
        sides[: stop - start] = by_value[node.cells[start:stop] - start]
        ordered = np.empty(len(node.bins), np.int32)
        left = int(loops().divide(node.bins, split.column, sides, ordered))
        children = [node.part(rows, node.histogram) for rows in (ordered[:left], ordered[left:])]
        # Of two children one is summed, and the other is the rest of their parent.
        small = int(left > len(ordered) - left)
        children[small].histogram = self._histogram(children[small])
        children[1 - small].histogram = node.histogram - children[small].histogram
        return children

    def _histogram(self, node: _Node) -> Int64s:
        found = np.zeros((self._grid.cells, 3), np.int64)
        starts = self._grid.starts[:-1]
        loops().add_rows(node.bins, node.gradients, node.hessians, starts, found)
        return found

    def _shown(self, node: _Node) -> Int64s:
        if self._least < 2:
            return node.histogram
        return joining.folded(node.histogram, node.cells)

    def _join(self, siblings: Sequence[_Node]) -> None:
        """Join the cells of siblings, which begin as those of their parent."""
        if self._least < 2:
            return
        counts = np.stack([self._shown(node)[:, 2] for node in siblings])
        further = joining.joined(counts, self._grid, self._least)
        for node in siblings:
            node.cells = further[node.cells]

    def _check(self, counts: Int64s, rows: int) -> None:
        are_few = np.any((counts > 0) & (counts < self._least)) or 0 < rows < self._least
        by_column = np.add.reduceat(counts, self._grid.starts[:-1])
        if are_few or np.any(by_column != rows):
            raise PolicyRefusal("a cell of the histogram has too few rows (min_cell)")
