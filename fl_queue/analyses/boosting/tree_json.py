"""
Trees as the JSON that XGBoost reads: ``xgboost.Booster(model_file=...)`` gives the same float32 margins.

Source: XGBoost's model schema, version 2.1; a set of categories goes right, as there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fl_queue.analyses.boosting.gradients import OBJECTIVES
from fl_queue.analyses.boosting.grid import Grid
from fl_queue.analyses.boosting.nodes import SPLIT, Tree
from fl_queue.analyses.boosting.rules import POISSON_STEP, Rules

#: Parent of a root.
_NO_PARENT = 2147483647
#: The largest float32: each number is below it, and missing values are not.
_ALL_NUMBERS = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Model:
    """
    A model of boosted trees.

    Args:
        names: Of the columns: those of numbers, then categories.
        grid: The columns' bins.
        rules: Settings.
        score: The score from which the trees begin, a float32.
        trees: Finished; of several classes one of each in turn.
        attributes: Texts that the file holds beside the trees.
    """

    names: Sequence[str]
    grid: Grid
    rules: Rules
    score: float
    trees: Sequence[Tree]
    attributes: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """The content of the file."""
        several = self.rules.classes if self.rules.objective == "multi" else 0
        return {
            "learner": {
                "attributes": dict(self.attributes),
                "feature_names": list(self.names),
                "feature_types": [
                    "c" if self.grid.is_category(column) else "float"
                    for column in range(self.grid.columns)
                ],
                "gradient_booster": {"model": self._trees(), "name": "gbtree"},
                "learner_model_param": {
                    "base_score": f"{self.score:.9E}",
                    "boost_from_average": "1",
                    "num_class": str(several),
                    "num_feature": str(self.grid.columns),
                    "num_target": "1",
                },
                "objective": self._objective(),
            },
            "version": [2, 1, 0],
        }

    def _objective(self) -> dict[str, Any]:
        name = OBJECTIVES[self.rules.objective].name
        if self.rules.objective == "multi":
            classes = str(self.rules.classes)
            return {"name": name, "softmax_multiclass_param": {"num_class": classes}}
        if self.rules.objective == "poisson":
            return {"name": name, "poisson_regression_param": {"max_delta_step": str(POISSON_STEP)}}
        return {"name": name, "reg_loss_param": {"scale_pos_weight": "1"}}

    def _trees(self) -> dict[str, Any]:
        count, classes = len(self.trees), self.rules.classes
        return {
            "cats": {"enc": [], "feature_segments": [], "sorted_idx": []},
            "gbtree_model_param": {"num_parallel_tree": "1", "num_trees": str(count)},
            "iteration_indptr": list(range(0, count + 1, classes)),
            "tree_info": [place % classes for place in range(count)],
            "trees": [self._tree(place, tree) for place, tree in enumerate(self.trees)],
        }

    def _tree(self, place: int, tree: Tree) -> dict[str, Any]:
        count, lefts = len(tree), tree.lefts.tolist()
        splits = [int(node) for node in np.flatnonzero(tree.kinds == SPLIT)]
        parents = [_NO_PARENT] * count
        found: dict[str, Any] = {
            "base_weights": [float(one) for one in tree.weights[:count]],
            "default_left": [0] * count,
            "id": place,
            "left_children": [-1] * count,
            "loss_changes": [0.0] * count,
            "parents": parents,
            "right_children": [-1] * count,
            "split_conditions": [float(one) for one in tree.weights[:count]],
            "split_indices": [0] * count,
            "split_type": [0] * count,
            "sum_hessian": [float(one) for one in tree.hessians[:count]],
            "tree_param": {
                "num_deleted": "0",
                "num_feature": str(self.grid.columns),
                "num_nodes": str(count),
                "size_leaf_vector": "1",
            },
        }
        sets: dict[int, list[int]] = {}
        for node in splits:
            split, left = tree.split(node), lefts[node]
            parents[left] = parents[left + 1] = node
            found["left_children"][node], found["right_children"][node] = left, left + 1
            found["default_left"][node] = int(split.default_left)
            found["loss_changes"][node] = split.gain
            found["split_indices"][node] = split.column
            if self.grid.is_category(split.column):
                sets[node] = [one for one in range(64) if split.categories >> one & 1]
                found["split_type"][node] = 1
                found["split_conditions"][node] = 0.0
            else:
                found["split_conditions"][node] = self._edge(split.column, split.bin)
        return found | _categories(sets)

    def _edge(self, column: int, place: int) -> float:
        edges = self.grid.edges[column]
        return float(edges[place]) if place < len(edges) else _ALL_NUMBERS


def _categories(sets: Mapping[int, Sequence[int]]) -> dict[str, Any]:
    """The sets of nodes, one after the other."""
    sizes = [len(one) for one in sets.values()]
    return {
        "categories": [code for one in sets.values() for code in one],
        "categories_nodes": list(sets),
        "categories_segments": [sum(sizes[:place]) for place in range(len(sizes))],
        "categories_sizes": sizes,
    }
