"""The aggregator's side of a level: the nodes of a tree are split, or become leaves."""

from __future__ import annotations

from collections.abc import Sequence

from fl_queue.analyses.boosting.nodes import Tree
from fl_queue.analyses.boosting.rules import Rules
from fl_queue.analyses.boosting.splits import SplitSearch, weight
from fl_queue.protocol.arrays import Int64s


def grow(tree: Tree, sums: Int64s, search: SplitSearch, rules: Rules, scale: int) -> None:
    """
    Split the open nodes of a level; changes ``tree``.

    Args:
        tree: Its nodes up to this level; without nodes: its root is made.
        sums: (open nodes, cells, 2), one for the root; none where the tree is finished before those of other classes.
        search: Of the same settings and scale.
        rules, scale: Settings, and fractional bits of the sums.
    """
    nodes: Sequence[int] = tree.open if len(tree) else [0]
    if not len(tree):
        total = sums[0, : search.first_column].sum(axis=0)
        _add(tree, 0, total, rules, scale)
    for node, histogram in zip(nodes, sums, strict=True):
        found = search.best(histogram)
        if found is None:
            tree.set_leaf(node)
            continue
        left = tree.set_split(node, found.split)
        _add(tree, left, found.left, rules, scale)
        _add(tree, left + 1, found.right, rules, scale)


def finish(tree: Tree) -> None:
    """Make leaves of the nodes that are open."""
    for node in tree.open:
        tree.set_leaf(node)


def _add(tree: Tree, node: int, sums: Int64s, rules: Rules, scale: int) -> None:
    tree.add_open(node, weight(sums, scale, rules), float(sums[1]) * 2.0**-scale)
