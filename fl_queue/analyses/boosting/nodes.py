"""
Trees as int64 words: two for each node, and a third one for the categories of its split where there are any.

Nodes are in the order in which they are made, level by level: the children of the i-th split are nodes 2i+1 and 2i+2.
The first word has the float32 of the weight (bits 0 to 31), the kind (32, 33), the side of missing values (34), the bin
(35 to 43) and the column (44 to 59). The second one has the float32 of the gain, and above it that of the hessian.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl_queue.analyses.boosting.grid import Grid
from fl_queue.analyses.boosting.loops import SIDES
from fl_queue.errors import MessageError
from fl_queue.protocol.arrays import Float32s, Int64s, Octets

#: Kinds of nodes: that of no node, and of one that may still be split.
NONE, LEAF, SPLIT, OPEN = 0, 1, 2, 3
_KIND, _DEFAULT, _BIN, _COLUMN = 32, 34, 35, 44
_LOW = (1 << 32) - 1


@dataclass(frozen=True)
class Split:
    """
    A split of a node.

    Args:
        column: Its column.
        bin: Bins up to this one go left; of categories not used.
        default_left: Whether missing values go left.
        categories: Bit c: category c goes right; 0 for numbers.
        gain: float32.
    """

    column: int
    bin: int
    default_left: bool
    categories: int
    gain: float

    def sides(self, grid: Grid) -> Octets:
        """1 for each bin whose rows go left, (256,); the cell of missing values is the one after the column's bins."""
        bins, found = int(grid.bins[self.column]), np.zeros(SIDES, np.uint8)
        if grid.is_category(self.column):
            found[:bins] = [not self.categories >> each & 1 for each in range(bins)]
        else:
            found[: self.bin + 1] = 1
        found[bins] = self.default_left
        return found


class Tree:
    """
    A tree in its words.

    Args:
        words: (nodes, 2 or 3), a view of a state; those of no node are 0.
    """

    def __init__(self, words: Int64s) -> None:
        self.words = words

    @property
    def kinds(self) -> Int64s:
        """(nodes,) kind of each node."""
        return self.words[:, 0] >> _KIND & 3

    def __len__(self) -> int:
        return int(np.count_nonzero(self.kinds))

    @property
    def open(self) -> list[int]:
        """Nodes that may still be split."""
        return [int(one) for one in np.flatnonzero(self.kinds == OPEN)]

    @property
    def weights(self) -> Float32s:
        """(nodes,) weight of each node as a leaf."""
        return _floats(self.words[:, 0] & _LOW)

    @property
    def gains(self) -> Float32s:
        """(nodes,) gain of each split."""
        return _floats(self.words[:, 1] & _LOW)

    @property
    def hessians(self) -> Float32s:
        """(nodes,) sum of hessians of each node."""
        return _floats(self.words[:, 1] >> 32 & _LOW)

    @property
    def lefts(self) -> Int64s:
        """(nodes,) left child of each split, after which comes the right one; 0 for a leaf."""
        is_split = self.kinds == SPLIT
        return np.where(is_split, 2 * np.cumsum(is_split) - 1, 0)

    def split(self, node: int) -> Split:
        """The split of a node."""
        word = int(self.words[node, 0])
        return Split(
            column=word >> _COLUMN & 0xFFFF,
            bin=word >> _BIN & 0x1FF,
            default_left=bool(word >> _DEFAULT & 1),
            categories=int(self.words[node, 2]) & (1 << 64) - 1 if self.words.shape[1] > 2 else 0,
            gain=float(self.gains[node]),
        )

    def add_open(self, node: int, weight: np.float32, hessian: float) -> None:
        """Make a node that may be split."""
        self.words[node, 0] = _bits(weight) | OPEN << _KIND
        self.words[node, 1] = _signed(_bits(np.float32(hessian)) << 32)

    def set_split(self, node: int, split: Split) -> int:
        """Split an open node; returns its left child, which has to be made."""
        kept = int(self.words[node, 0]) & _LOW
        self.words[node, 0] = (
            kept
            | SPLIT << _KIND
            | int(split.default_left) << _DEFAULT
            | split.bin << _BIN
            | split.column << _COLUMN
        )
        self.words[node, 1] |= _bits(np.float32(split.gain))
        if self.words.shape[1] > 2:
            self.words[node, 2] = _signed(split.categories)
        return int(self.lefts[node])

    def set_leaf(self, node: int) -> None:
        """Make an open node a leaf."""
        self.words[node, 0] = int(self.words[node, 0]) & _LOW | LEAF << _KIND

    def check(self, grid: Grid) -> None:
        """
        Raise MessageError unless the words are a tree of the columns.

        A site reads them from a state: no word may lead out of an array.
        """
        kinds, splits = self.kinds, np.flatnonzero(self.kinds == SPLIT)
        count = len(self)
        if count != 2 * len(splits) + 1 or np.any(kinds[:count] == NONE):
            raise MessageError("a tree's nodes do not follow from its splits")
        if np.any(self.lefts[splits] <= splits):
            raise MessageError("a tree's split is no ancestor of its children")
        for node in splits:
            found = self.split(int(node))
            if found.column >= grid.columns or found.bin > grid.bins[found.column]:
                raise MessageError("a tree's split is on a column or a bin that does not exist")

    @property
    def _columns(self) -> Int64s:
        is_split = self.kinds == SPLIT
        return np.where(is_split, self.words[:, 0] >> _COLUMN & 0xFFFF, 0)

    def routes(self, grid: Grid) -> tuple[Int64s, Int64s, Octets, Float32s]:
        """Columns, left children, sides and weights of a finished tree, as ``loops.add_leaves`` takes them."""
        count = len(self)
        sides = np.zeros((count, SIDES), np.uint8)
        for node in np.flatnonzero(self.kinds == SPLIT):
            sides[node] = self.split(int(node)).sides(grid)
        return self._columns[:count], self.lefts[:count], sides, self.weights[:count]


def _floats(bits: Int64s) -> Float32s:
    return bits.astype(np.uint32).view(np.float32)


def _bits(value: np.float32) -> int:
    return int(np.array([value], np.float32).view(np.uint32)[0])


def _signed(word: int) -> np.int64:
    return np.int64(word - (1 << 64) if word >> 63 & 1 else word)
