"""A run of trees as its config has it: columns, target, settings, and the sizes of its vectors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fl_queue.analyses import questions
from fl_queue.analyses.boosting.rules import MAX_CATEGORIES, Rules
from fl_queue.errors import ConfigError

#: Objectives whose target is a class.
CLASSES = ("binary", "multi")
#: Words of a state: 32 MiB.
MAX_STATE = 1 << 22


@dataclass(frozen=True)
class Plan:
    """
    What is grown.

    Args:
        target: Column of the target.
        classes: Its levels; empty: it is a column of numbers.
        numbers: Columns of numbers.
        levels: Category -> its levels.
        rules: Settings.
    """

    target: str
    classes: tuple[str, ...]
    numbers: tuple[str, ...]
    levels: Mapping[str, tuple[str, ...]]
    rules: Rules

    @classmethod
    def of_options(cls, options: Mapping[str, Any]) -> Plan:
        """
        Read the options.

        Raises:
            ConfigError: Names the field, and the fix.
        """
        target, numbers = str(options["target"]), tuple(options["numbers"])
        levels = {
            name: questions.levels_of(name, found) for name, found in options["levels"].items()
        }
        classes = levels.pop(target, ())
        questions.check_once("task.numbers", numbers)
        if not target:
            raise ConfigError("task.target", "is empty; set the column that is predicted")
        for name in numbers:
            if name == target or name in levels:
                raise ConfigError("task.numbers", f"{name} is a target or a category, too")
        if not numbers and not levels:
            raise ConfigError("task.numbers", "is empty, and so is task.levels; name columns")
        for name, found in levels.items():
            if len(found) >= MAX_CATEGORIES:
                raise ConfigError(
                    f"task.levels.{name}", f"has {len(found)} levels; {MAX_CATEGORIES - 1} at most"
                )
        return cls(target, classes, numbers, levels, _rules(options, classes))

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that trees split on, in the order of the grid."""
        return (*self.numbers, *self.levels)

    @property
    def categories(self) -> tuple[int, ...]:
        """Codes of each category: its levels, and other texts."""
        return tuple(len(found) + 1 for found in self.levels.values())

    @property
    def node_words(self) -> int:
        """Words of a node."""
        return 3 if self.levels else 2

    @property
    def most_cells(self) -> int:
        """Cells of a histogram at most."""
        numbers = len(self.numbers) * (self.rules.max_bin + 1)
        return numbers + sum(self.categories) + len(self.categories)

    def check(self) -> None:
        """Raise ConfigError if a vector or a state would be too large."""
        rules = self.rules
        if self.most_cells * rules.classes << rules.max_depth > questions.MAX_WORDS:
            raise ConfigError(
                "task.max_depth",
                "makes histograms of a level that are too large; lower it, or task.max_bin",
            )
        if rules.trees * rules.classes * rules.max_nodes * self.node_words > MAX_STATE:
            raise ConfigError(
                "task.trees", "are too many for one state; lower it, or task.max_depth"
            )


def check(options: Mapping[str, Any]) -> None:
    """Raise ConfigError unless trees can be grown with the options."""
    Plan.of_options(options).check()


def _rules(options: Mapping[str, Any], classes: tuple[str, ...]) -> Rules:
    objective = str(options["objective"])
    if objective == "multi" and len(classes) < 2:
        raise ConfigError("task.levels", f"name the classes of {options['target']}, two or more")
    if objective == "binary" and classes and len(classes) != 2:
        raise ConfigError(
            f"task.levels.{options['target']}",
            f"has {len(classes)} levels; objective binary has two, the second one is predicted",
        )
    if objective not in CLASSES and classes:
        raise ConfigError(
            "task.levels", f"objective {objective} predicts a number; leave {options['target']} out"
        )
    if options["patience"] and not options["validation"]:
        raise ConfigError(
            "task.patience", "needs rows to look at; set task.validation, such as 0.2"
        )
    return Rules(
        objective=objective,
        classes=len(classes) if objective == "multi" else 1,
        l2=options["lambda"],
        l1=options["alpha"],
        **{name: options[name] for name in _SAME},
    )


#: Fields of ``Rules`` that the config calls the same.
_SAME = (
    "trees",
    "max_depth",
    "eta",
    "max_bin",
    "gamma",
    "min_child_weight",
    "subsample",
    "validation",
    "patience",
    "seed",
)
