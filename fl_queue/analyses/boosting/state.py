"""The state of a run of trees, as one vector of int64 words of a fixed size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fl_queue.analyses import cells
from fl_queue.analyses.boosting.gradients import MAX_SCALE
from fl_queue.analyses.boosting.grid import Grid
from fl_queue.analyses.boosting.nodes import SPLIT, Tree
from fl_queue.analyses.boosting.plan import Plan
from fl_queue.errors import MessageError
from fl_queue.protocol.arrays import Float32s, Float64s, Int64s

#: Phases: the next step counts coarse cells, fine ones, or grows trees; or there is none.
COARSE, FINE, GROW, DONE = range(4)

#: Words of the header, in their order.
_FIELDS = (
    "phase",
    "iteration",
    "level",
    "scale",
    "loss_scale",
    "rows",
    "validation_rows",
    "sites",
    "dropped",
    "best",
    "coarser",
    "steps",
)
#: Words of the header that are float64.
_FLOATS = ("score", "margin")
_HEADER = 16
#: How finely a coarse cell is cut, in four bits.
_NIBBLES = 16
_CUTS = cells.COARSE // _NIBBLES
#: Fractional bits of the coarsest grid: it has no more for the largest numbers that a table may have.
_LEAST_SCALE = -400
#: Times that the grid may be made coarser.
MAX_COARSER = 4


class State:
    """
    A view of a state's words.

    Args:
        plan: The run's.
        words: (``size``,); changed by the methods that set something.
    """

    def __init__(self, plan: Plan, words: Int64s) -> None:
        self.plan, self.words = plan, words
        rules, numbers = plan.rules, len(plan.numbers)
        self._edges_at = _HEADER
        self._losses_at = self._edges_at + numbers * rules.max_bin
        self._trees_at = self._losses_at + 2 * (rules.trees + 1)

    @staticmethod
    def size(plan: Plan) -> int:
        """Words of each state of a run."""
        rules, numbers = plan.rules, len(plan.numbers)
        trees = rules.trees * rules.classes * rules.max_nodes * plan.node_words
        return (
            _HEADER + numbers * rules.max_bin + 2 * (rules.trees + 1) + max(trees, numbers * _CUTS)
        )

    def copy(self) -> State:
        """A state of its own."""
        return State(self.plan, self.words.copy())

    # The header

    def __getitem__(self, field: str) -> int:
        return int(self.words[_FIELDS.index(field)])

    def __setitem__(self, field: str, value: int) -> None:
        self.words[_FIELDS.index(field)] = value

    def number(self, field: str) -> float:
        """A word of the header that is a float64."""
        return float(self.words.view(np.float64)[len(_FIELDS) + _FLOATS.index(field)])

    def set_number(self, field: str, value: float) -> None:
        """Set a word of the header that is a float64."""
        self.words.view(np.float64)[len(_FIELDS) + _FLOATS.index(field)] = value

    def check(self) -> None:
        """
        Raise MessageError unless the header is one that a step may have made.

        A site computes with it; it comes from elsewhere.
        """
        rules = self.plan.rules
        limits = {
            "phase": (COARSE, DONE),
            "iteration": (0, rules.trees),
            "level": (0, rules.max_depth - 1),
            "scale": (_LEAST_SCALE, MAX_SCALE),
            "loss_scale": (_LEAST_SCALE, MAX_SCALE),
        }
        for field, (low, high) in limits.items():
            if not low <= self[field] <= high:
                raise MessageError(f"a state's {field} is not within its limits")
        if not np.isfinite(self.number("margin")):
            raise MessageError("a state's margin is no number")

    # The cells

    @property
    def cuts(self) -> list[Int64s]:
        """Of each column of numbers how finely its coarse cells are cut, as of ``cells.cut_bits``."""
        found = []
        for column in range(len(self.plan.numbers)):
            start = self._trees_at + column * _CUTS
            packed = self.words[start : start + _CUTS].view(np.uint64)
            shifts = 4 * np.arange(_NIBBLES, dtype=np.uint64)
            nibbles = (packed[:, None] >> shifts & np.uint64(15)).astype(np.int64).reshape(-1)
            found.append(np.where(nibbles == 15, -1, nibbles))
        return found

    def set_cuts(self, cuts: Sequence[Int64s]) -> None:
        """Keep them, where trees will be."""
        for column, bits in enumerate(cuts):
            start = self._trees_at + column * _CUTS
            nibbles = np.where(bits < 0, 15, bits).astype(np.uint64).reshape(_CUTS, _NIBBLES)
            shifts = 4 * np.arange(_NIBBLES, dtype=np.uint64)
            packed = np.bitwise_or.reduce(nibbles << shifts, axis=1)
            self.words[start : start + _CUTS] = packed.view(np.int64)

    @property
    def grid(self) -> Grid:
        """The bins of the columns. Raises MessageError: the edges are none."""
        rules, found = self.plan.rules, []
        for column in range(len(self.plan.numbers)):
            start = self._edges_at + column * rules.max_bin
            count = int(self.words[start])
            if not 0 <= count < rules.max_bin:
                raise MessageError("a state's number of edges is not within its limits")
            bits = self.words[start + 1 : start + 1 + count]
            edges = (bits & 0xFFFFFFFF).astype(np.uint32).view(np.float32)
            if not (np.isfinite(edges).all() and (np.diff(edges) > 0).all()):
                raise MessageError("a state's edges do not ascend")
            found.append(edges)
        return Grid(tuple(found), self.plan.categories)

    def set_edges(self, edges: Sequence[Float32s]) -> None:
        """Keep the edges of the columns of numbers, and forget how their cells were cut."""
        self.words[self._trees_at :] = 0
        for column, found in enumerate(edges):
            start = self._edges_at + column * self.plan.rules.max_bin
            self.words[start] = len(found)
            self.words[start + 1 : start + 1 + len(found)] = found.view(np.uint32)

    @property
    def edge_words(self) -> Int64s:
        """The words of all edges."""
        return self.words[self._edges_at : self._losses_at]

    # The trees

    @property
    def losses(self) -> Float64s:
        """(iterations + 1, 2) mean loss of the rows that are trained on, and of the others, before each iteration."""
        found: Float64s = self.words[self._losses_at : self._trees_at].view(np.float64)
        return found.reshape(-1, 2)

    def trees(self, iteration: int) -> list[Tree]:
        """The trees of an iteration, one for each class; views."""
        rules = self.plan.rules
        words = self.iteration_words(iteration)
        return [Tree(one) for one in words.reshape(rules.classes, rules.max_nodes, -1)]

    def iteration_words(self, iteration: int) -> Int64s:
        """The words of an iteration's trees, a view."""
        rules = self.plan.rules
        size = rules.classes * rules.max_nodes * self.plan.node_words
        start = self._trees_at + iteration * size
        return self.words[start : start + size]

    @property
    def open(self) -> list[list[int]]:
        """Of each class the open nodes of the iteration that grows; its root before there are nodes."""
        rules = self.plan.rules
        if self["iteration"] == rules.trees:
            return [[] for _ in range(rules.classes)]
        if self["level"] == 0:
            return [[0] for _ in range(rules.classes)]
        return [tree.open for tree in self.trees(self["iteration"])]

    def levels(self, tree: Tree) -> list[list[int]]:
        """The nodes of a tree by level, as they were open, down to the level that is open now."""
        found, nodes, lefts = [], [0], tree.lefts
        for _ in range(self["level"]):
            found.append(nodes)
            nodes = [
                child
                for node in nodes
                if tree.kinds[node] == SPLIT
                for child in (int(lefts[node]), int(lefts[node]) + 1)
            ]
        return found
