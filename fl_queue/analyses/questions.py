"""Questions of the task ``statistics``, as the config's ``[task]`` has them: read and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from fl_queue.analyses import filters, time_grids
from fl_queue.analyses.filters import Condition
from fl_queue.analyses.time_grids import Curve
from fl_queue.errors import ConfigError

#: Levels of a category.
MAX_LEVELS = 1000
#: Words of one vector: 64 MiB.
MAX_WORDS = 1 << 23


@dataclass(frozen=True)
class Questions:
    """
    What is asked.

    Args:
        numbers: Columns whose rows, mean and standard deviation are asked for, in the config's order.
        quantiles: In (0, 1), ascending; of each of ``numbers``.
        levels: Category -> its levels, in the config's order.
        groups: (number, category): mean and standard deviation by level.
        tables: Pairs of categories.
        correlated: Columns of numbers.
        curves: Questions about survival.
        dates: Those of ``numbers`` and ``correlated`` that hold dates.
        named: Categories whose levels are asked for by name.
        where: Conditions that the rows meet.
    """

    numbers: tuple[str, ...]
    quantiles: tuple[float, ...]
    levels: Mapping[str, tuple[str, ...]]
    groups: tuple[tuple[str, str], ...]
    tables: tuple[tuple[str, str], ...]
    correlated: tuple[str, ...]
    curves: tuple[Curve, ...]
    dates: tuple[str, ...]
    named: tuple[str, ...]
    where: tuple[Condition, ...] = ()

    @classmethod
    def of_options(cls, options: Mapping[str, Any]) -> Questions:
        """
        Read the options of the task.

        Raises:
            ConfigError: Names the option, and the fix.
        """
        levels = {name: levels_of(name, found) for name, found in options["levels"].items()}
        numbers, correlated = tuple(options["numbers"]), tuple(options["correlation"])
        curves = tuple(time_grids.curves_of(options, levels))
        named = tuple(options.get("vocabulary", ()))
        check_once("task.vocabulary", named)
        for name in named:
            if name in (*numbers, *correlated, *levels):
                raise ConfigError(
                    "task.vocabulary", f"{name} is asked about otherwise, too; leave it out of one"
                )
        _check_numbers(numbers, correlated, levels, bool(curves or named))
        if options["quantiles"] and not numbers:
            raise ConfigError("task.quantiles", "are those of task.numbers, which is empty")
        groups = _pairs("task.groups", options["groups"], " by ")
        for number, category in groups:
            _check_listed("task.groups", number, numbers, "task.numbers")
            _check_listed("task.groups", category, levels, "task.levels")
        tables = _pairs("task.tables", options["tables"], " by ")
        for pair in tables:
            for category in pair:
                _check_listed("task.tables", category, levels, "task.levels")
            if pair[0] == pair[1]:
                raise ConfigError("task.tables", f"{pair[0]} stands by itself; name two categories")
        dates = tuple(options.get("dates", ()))
        check_once("task.dates", dates)
        for name in dates:
            _check_listed("task.dates", name, (*numbers, *correlated), "task.numbers")
        quantiles = tuple(options["quantiles"])
        where = filters.of_texts(options.get("where", ()))
        if where:
            _check_of_all({"quantiles": quantiles, "survival": curves, "vocabulary": named})
        return cls(
            numbers, quantiles, levels, groups, tables, correlated, curves, dates, named, where
        )


def _check_numbers(
    numbers: Sequence[str], correlated: Sequence[str], levels: Mapping[str, Any], more: bool
) -> None:
    """Raise ConfigError unless these can be asked for. Args: ``more``: whether something else is."""
    for field, names in (("numbers", numbers), ("correlation", correlated)):
        check_once(f"task.{field}", names)
        for name in names:
            if name in levels:
                raise ConfigError(
                    f"task.{field}", f"{name} has levels in task.levels; leave it out of one"
                )
    if not (numbers or levels or correlated or more):
        raise ConfigError("task.numbers", "is empty, as task.levels is; list columns of one")
    if len(correlated) == 1:
        raise ConfigError("task.correlation", "names one column; list two or more")


def _check_of_all(asked: Mapping[str, Any]) -> None:
    """Raise ConfigError for options that are asked of all rows alone. Args: ``asked``: their values by name."""
    for name, found in asked.items():
        if found:
            raise ConfigError(
                f"task.{name}", "is of all rows, and not asked with task.where; leave one out"
            )


def check(options: Mapping[str, Any]) -> None:
    """Raise ConfigError unless the options are questions that can be asked."""
    found = Questions.of_options(options)
    if any(low >= high for low, high in pairwise(found.quantiles)):
        raise ConfigError("task.quantiles", "do not ascend; write them in order, each once")


def quantiles_problem(values: Sequence[float]) -> str | None:
    """What is wrong with ``task.quantiles``; None: nothing."""
    if all(0 < value < 1 for value in values):
        return None
    return (
        "are not all between 0 and 1; a minimum and a maximum are one row's, and are not asked for"
    )


def levels_of(name: str, found: Any) -> tuple[str, ...]:
    """The levels of a category in ``task.levels``. Raises ConfigError: they are no list of texts."""
    field = f"task.levels.{name}"
    if not isinstance(found, tuple) or not found or not all(type(one) is str for one in found):
        raise ConfigError(field, 'is no list of texts, such as ["F", "M"]')
    if len(found) > MAX_LEVELS:
        raise ConfigError(field, f"has {len(found)} levels; {MAX_LEVELS} at most")
    check_once(field, found)
    if "" in found:
        raise ConfigError(field, "holds an empty text, which is a missing cell; leave it out")
    for text in found:
        if text != text.strip():
            why = f"{text[:40]!r} has spaces around it, and no cell is read with them; remove them"
            raise ConfigError(field, why)
    return found


def _pairs(field: str, texts: Sequence[str], between: str) -> tuple[tuple[str, str], ...]:
    pairs = []
    for text in texts:
        left, found, right = text.partition(between)
        if not (found and left.strip() and right.strip()):
            raise ConfigError(field, f"{text!r} is no pair such as `age by sex`")
        pairs.append((left.strip(), right.strip()))
    check_once(field, [f"{left}{between}{right}" for left, right in pairs])
    return tuple(pairs)


def check_once(field: str, names: Sequence[str]) -> None:
    """Raise ConfigError if a name stands twice."""
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(field, f"{name} stands twice; leave one out")


def _check_listed(field: str, name: str, known: Sequence[str] | Mapping[str, Any], of: str) -> None:
    if name not in known:
        raise ConfigError(field, f"{name} is not in {of}; add it there")
