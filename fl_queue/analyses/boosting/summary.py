"""The result of a run of trees: its numbers, and its model."""

from __future__ import annotations

from typing import Any

import numpy as np

from fl_queue.analyses.boosting.gradients import OBJECTIVES
from fl_queue.analyses.boosting.nodes import SPLIT, Tree
from fl_queue.analyses.boosting.state import State
from fl_queue.analyses.boosting.tree_json import Model
from fl_queue.common.safe_json import dumps


def kept(state: State) -> list[Tree]:
    """The trees of the model: with ``task.patience`` those up to the lowest loss of the rows that are not trained on."""
    iterations = state["best"] if state.plan.rules.patience else state["iteration"]
    return [tree for one in range(iterations) for tree in state.trees(one)]


def model(state: State) -> Model:
    """The model of a state whose trees are finished."""
    plan = state.plan
    about = {
        "target": plan.target,
        "classes": list(plan.classes),
        "levels": {name: list(levels) for name, levels in plan.levels.items()},
        "rows": state["rows"],
        "sites": state["sites"],
    }
    return Model(
        plan.names,
        state.grid,
        plan.rules,
        state.number("score"),
        kept(state),
        {"fl_queue": dumps(about), "best_iteration": str(max(_iterations(state) - 1, 0))},
    )


def summary(state: State) -> dict[str, Any]:
    """The result as plain values."""
    plan, trees = state.plan, kept(state)
    rules, losses = plan.rules, state.losses[: state["iteration"] + 1]
    watched = bool(state["validation_rows"])
    return {
        "objective": OBJECTIVES[rules.objective].name,
        "target": plan.target,
        "classes": list(plan.classes),
        "sites": state["sites"],
        "rows": state["rows"],
        "validation_rows": state["validation_rows"],
        "rows_without_target": state["dropped"],
        "steps": state["steps"],
        "trees": len(trees),
        "iterations": _iterations(state),
        "grown": state["iteration"],
        "nodes": sum(map(len, trees)),
        "bins": dict(zip(plan.names, state.grid.bins.tolist(), strict=True)),
        "loss": [float(one) for one in losses[:, 0]],
        "validation_loss": [float(one) for one in losses[:, 1]] if watched else [],
        "importance": _importance(state, trees),
    }


def _iterations(state: State) -> int:
    return len(kept(state)) // state.plan.rules.classes


def _importance(state: State, trees: list[Tree]) -> list[dict[str, Any]]:
    """What splits on each column gain, the largest first; of equals the first column."""
    names = state.plan.names
    gains, splits = np.zeros(len(names)), np.zeros(len(names), np.int64)
    for tree in trees:
        for node in np.flatnonzero(tree.kinds == SPLIT):
            found = tree.split(int(node))
            gains[found.column] += found.gain
            splits[found.column] += 1
    total = float(gains.sum()) or 1.0
    return [
        {
            "column": names[at],
            "gain": float(gains[at]),
            "share": float(gains[at]) / total,
            "splits": int(splits[at]),
        }
        for at in np.argsort(-gains, kind="stable")
    ]
