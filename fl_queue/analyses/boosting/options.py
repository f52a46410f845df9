"""Options of the task ``trees``, beside those of its table."""

from __future__ import annotations

from fl_queue.common.options import Option, OptionTable

OPTIONS: dict[str, Option] = {
    "target": Option(
        "str", "", "column that is predicted; rows without a value of it are left out"
    ),
    "objective": Option(
        "str",
        "binary",
        "binary (a column of 0 and 1, or a category of two levels, of which the second is predicted), "
        "multi (a category), squared (a number) or poisson (a count)",
        choices=("binary", "multi", "squared", "poisson"),
    ),
    "numbers": Option("strs", (), "columns of numbers to predict from"),
    "levels": Option(
        "table",
        OptionTable(),
        'categories to predict from, and their levels, such as { sex = ["F", "M"] }; with the target\'s '
        "classes, if it is one; any other text is a level of its own",
    ),
    "trees": Option("int", 100, "iterations: trees, or of multi trees of each class", low=1),
    "max_depth": Option("int", 4, "levels of splits; each is a round", low=1, high=12),
    "eta": Option("float", 0.3, "factor of each leaf", above=0),
    "max_bin": Option("int", 64, "bins of a column of numbers at most", low=2, high=255),
    "lambda": Option("float", 1.0, "L2 penalty of leaves", low=0),
    "alpha": Option("float", 0.0, "L1 penalty of leaves", low=0),
    "gamma": Option("float", 0.0, "a split must gain more", low=0),
    "min_child_weight": Option(
        "float", 1.0, "least sum of hessians on each side of a split", low=0
    ),
    "subsample": Option(
        "float", 1.0, "part of the rows that each iteration takes", above=0, high=1
    ),
    "validation": Option(
        "float",
        0.0,
        "part of the rows that is not trained on, for validation_loss",
        low=0,
        high=0.9,
    ),
    "patience": Option(
        "int",
        0,
        "iterations without a lower validation_loss after which it ends, and keeps the best trees; 0: it does not",
        low=0,
    ),
    "seed": Option("int", 0, "of subsample and validation", low=0),
}
