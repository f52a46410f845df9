"""Options of the built-in task ``table``: its columns, targets and the form of its files. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from fl_queue.common import data_folder
from fl_queue.common.options import Option, OptionTable, unknown_key
from fl_queue.errors import ConfigError
from fl_queue.tables.schema import DELIMITERS, KINDS, NOTHING, Kind

#: Objective -> name and direction of its metrics beside the loss, the most important first.
_CLASSES = {"auc": "max", "accuracy": "max", "balanced_accuracy": "max", "f1": "max"}
_NUMBERS = {"rmse": "min", "mae": "min", "r2": "max"}
OBJECTIVES: Mapping[str, Mapping[str, str]] = {
    "binary": _CLASSES,
    "classes": {name: _CLASSES[name] for name in ("accuracy", "balanced_accuracy", "f1", "auc")},
    "labels": {"f1_micro": "max", "f1_macro": "max", "hamming": "min"},
    "regression": _NUMBERS,
    "counts": _NUMBERS,
    "survival": {"loss": "min"},
}
_PREPARE = "have the sites agree on it: `fl-queue prepare CONFIG`"
PARTS = ("year", "month", "weekday")
#: What the sites agree on, of a column.
AGREED = ("mean", "sd", "median", "most_frequent")
_KEYS = ("type", "levels", "reference", "missing", "indicator", "date", *AGREED)
MAX_LEVELS = 1000
#: Of numbers in float32.
_MOST = 3.4e38


@dataclass(frozen=True)
class Feature:
    """
    A feature column.

    Args:
        name: In the header.
        kind: As of ``tables.Column``.
        levels: Of a category, in the order of their codes.
        reference: The level that is all zeros in the model; empty: each level has an input of its own.
        missing: ``refuse``; ``mean`` (of the federation); ``level`` of a category, or ``most_frequent``; or the number to
            use. Where it is not agreed yet also ``median``, and ``most_frequent`` of a boolean.
        indicator: Whether the model has an input more that is 1 where the value is missing.
        parts: Of a date, in place of its days.
        unit: Agreed mean and standard deviation, by which it is standardised; None: those of the first round.
        most_frequent: Of a category: the agreed level that a missing value counts as.
    """

    name: str
    kind: Kind = "number"
    levels: tuple[str, ...] = ()
    reference: str = ""
    missing: str | float = "refuse"
    indicator: bool = False
    parts: tuple[str, ...] = ()
    unit: tuple[float, float] | None = None
    most_frequent: str = ""


def metrics_of(options: Mapping[str, Any]) -> Mapping[str, str]:
    """Name and direction of the metrics of a run with these options."""
    return OBJECTIVES[options["objective"]]


def names_of(text: str) -> list[str]:
    """Names in a comma separated text."""
    return [name.strip() for name in text.split(",") if name.strip()]


def features_of(options: Mapping[str, Any], is_open: bool = False) -> list[Feature]:
    """
    The features, in the model's order.

    Args:
        is_open: Whether what the sites agree on, such as levels and medians, may be missing still.

    Raises:
        ConfigError: Names the option to change.
    """
    columns = options["columns"]
    return [
        _feature(name, columns.get(name, {}), options["fill"], is_open)
        for name in names_of(options["features"])
    ]


def target_unit(options: Mapping[str, Any]) -> tuple[float, float] | None:
    """
    Agreed mean and standard deviation of the target of a regression; None: those of the first round.

    Raises:
        ConfigError: Names the option to change.
    """
    (name, *_) = names_of(options["target"])
    given = options["columns"].get(name, {}) if options["objective"] == "regression" else {}
    return _unit(f"columns.{name}", "number", _table(f"columns.{name}", given, ("mean", "sd")))


def check(options: Mapping[str, Any], is_open: bool = False) -> None:
    """
    Raise ConfigError for options that contradict each other; names the option to change.

    Args:
        is_open: As of ``features_of``.
    """
    features, targets = names_of(options["features"]), names_of(options["target"])
    for field, names in (("features", features), ("target", targets)):
        if not names:
            raise _error(field, "is empty; list the columns, comma separated")
    owner = names_of(options["owner"])
    if len(owner) > 1:
        raise _error("owner", f"{len(owner)} columns; name the one that has whose a row is")
    used = [*features, *targets, *owner]
    twice = sorted({name for name in used if used.count(name) > 1})
    if twice:
        raise _error("features", f"{twice[0]} is listed twice, or is the target or the owner, too")
    known = [*features, *(targets if options["objective"] == "regression" else ())]
    for name in options["columns"]:
        if name not in known:
            raise unknown_key(f"task.columns.{name}", [f"task.columns.{one}" for one in features])
    target_unit(options)
    for one in features_of(options, is_open):
        _check_values(f"columns.{one.name}.levels", one.levels, options["missing"])
    _check_target(options, targets)


def _check_target(options: Mapping[str, Any], targets: list[str]) -> None:
    objective, classes = options["objective"], names_of(options["classes"])
    wanted = {"labels": 0, "survival": 2}.get(objective, 1)
    if wanted and len(targets) != wanted:
        what = "the columns of time and event" if wanted == 2 else "one column"
        raise _error("target", f"{len(targets)} columns; task.objective = {objective} wants {what}")
    if objective in ("binary", "classes"):
        if len(classes) < 2 or len(set(classes)) < len(classes):
            raise _error("classes", "two or more different values of the target are needed")
        _check_values("classes", classes, options["missing"])
        if objective == "binary" and len(classes) > 2:
            raise _error("objective", f"binary, with {len(classes)} classes; write classes")
    grid = options["time_grid"]
    if objective == "survival" and not grid:
        raise _error(
            "time_grid", "is empty; give the ends of the intervals of time, such as [30, 60]"
        )
    if any(a >= b for a, b in pairwise((0.0, *grid))):
        raise _error(
            "time_grid", "does not rise from above 0; give the ends of the intervals in order"
        )


def _check_values(field: str, values: Sequence[str], missing: Sequence[str]) -> None:
    """Raise ConfigError for a value that no cell has: cells are read without spaces, and some are no value."""
    for value in values:
        if value != value.strip():
            raise _error(field, f"{value[:40]!r} has spaces around it, and cells are read without")
        if value in missing:
            raise _error(
                field,
                f"{value[:40]!r} is a cell without a value by task.missing; leave it out here, or there",
            )


def _table(field: str, given: Any, keys: Sequence[str]) -> Mapping[str, Any]:
    """A column's table in ``task.columns``. Raises ConfigError for keys that it has not."""
    if not isinstance(given, Mapping):
        raise _error(field, 'is no table such as { type = "category", levels = ["I", "II"] }')
    for key in given:
        if key not in keys:
            raise unknown_key(f"task.{field}.{key}", [f"task.{field}.{one}" for one in keys])
    return given


def _feature(name: str, given: Any, fill: str, is_open: bool) -> Feature:
    """A column by its table in ``task.columns``. Raises ConfigError."""
    field = f"columns.{name}"
    given = _table(field, given, _KEYS)
    kind = given.get("type", "number")
    if kind not in KINDS:
        raise _error(f"{field}.type", f"{str(kind)[:40]!r} is not one of {', '.join(KINDS)}")
    levels = _texts(f"{field}.levels", given.get("levels", ()))
    parts = _texts(f"{field}.date", given.get("date", ()))
    missing = _missing(field, kind, given.get("missing", _filled(kind, fill)))
    found = Feature(
        name,
        kind,
        levels,
        str(given.get("reference", "")),
        _agreed_fill(field, kind, missing, given, is_open),
        _switch(f"{field}.indicator", given.get("indicator", False)),
        parts,
        _unit(field, kind, given),
        str(given.get("most_frequent", "")) if kind == "category" else "",
    )
    _check_category(field, found, is_open)
    _check_date(field, found)
    if found.indicator and (kind == "category" or found.missing == "refuse"):
        rule = 'set missing = "mean" or to a number; a category has missing = "level"'
        raise _error(f"{field}.indicator", f"is for numbers that may be missing; {rule}")
    return found


def _filled(kind: str, fill: str) -> str:
    """How ``task.fill`` fills a column of this kind."""
    by_kind = {
        "median": {"category": "level", "boolean": "most_frequent", "date": "mean"},
        "most_frequent": {"number": "median", "integer": "median", "date": "mean"},
        "mean": {"category": "level"},
    }
    return by_kind.get(fill, {}).get(kind, fill)


def _agreed_fill(
    field: str, kind: str, missing: str | float, given: Mapping[str, Any], is_open: bool
) -> str | float:
    """The number that a missing value counts as, once it is agreed. Raises ConfigError."""
    for key in ("median", "most_frequent"):
        if key in given and missing != key:
            raise _error(f"{field}.{key}", f'is for missing = "{key}"; leave it out')
    if missing not in ("median", "most_frequent") or (is_open and missing not in given):
        return missing
    assert isinstance(missing, str)
    if missing not in given:
        raise _error(f"{field}.{missing}", f"is not agreed yet; {_PREPARE}")
    return missing if kind == "category" else _number(f"{field}.{missing}", given[missing])


def _unit(field: str, kind: str, given: Mapping[str, Any]) -> tuple[float, float] | None:
    """Agreed mean and standard deviation. Raises ConfigError."""
    if not {"mean", "sd"} & set(given):
        return None
    if kind in ("category", "date"):
        raise _error(f"{field}.mean", "is for numbers and booleans, as sd is; leave them out")
    for key, other in (("mean", "sd"), ("sd", "mean")):
        if key not in given:
            raise _error(f"{field}.{key}", f"is missing beside {other}; give both, or none")
    mean, deviation = (_number(f"{field}.{key}", given[key]) for key in ("mean", "sd"))
    if deviation < 0:
        raise _error(f"{field}.sd", f"{deviation:g} is below 0")
    return mean, deviation


def _number(field: str, given: Any) -> float:
    if type(given) not in (int, float) or not abs(given) <= _MOST:
        raise _error(field, f"{str(given)[:40]!r} is no number, or beyond float32")
    return float(given)


def _check_date(field: str, found: Feature) -> None:
    parts = found.parts
    if parts and (found.kind != "date" or not set(parts) <= set(PARTS)):
        raise _error(f"{field}.date", f"is for dates, and lists some of {', '.join(PARTS)}")
    if len(set(parts)) < len(parts):
        raise _error(f"{field}.date", "lists a part twice; leave one out")


def _check_category(field: str, found: Feature, is_open: bool) -> None:
    levels = found.levels
    if found.kind != "category" and levels:
        raise _error(f"{field}.levels", 'is for type = "category"')
    if found.kind == "category" and not (levels or is_open):
        raise _error(f"{field}.levels", f"list its values, or {_PREPARE}")
    if len(set(levels)) < len(levels) or len(levels) > MAX_LEVELS:
        raise _error(f"{field}.levels", f"lists a value twice, or more than {MAX_LEVELS}")
    for key, level in (("reference", found.reference), ("most_frequent", found.most_frequent)):
        if level and level not in levels and not (is_open and not levels):
            raise _error(f"{field}.{key}", "is not one of the levels")


def _missing(field: str, kind: str, given: Any) -> str | float:
    is_category = kind == "category"
    is_number = type(given) in (int, float) and abs(given) <= _MOST
    if is_number and kind not in ("category", "date"):
        return float(given)
    if given == "mean" and is_category:
        return "level"
    known = {
        "category": ("refuse", "level", "most_frequent"),
        "boolean": ("refuse", "mean", "most_frequent"),
        "date": ("refuse", "mean"),
    }.get(kind, ("refuse", "mean", "median"))
    if given in known:
        return str(given)
    *names, last = [f'"{name}"' for name in known]
    rule = f"{', '.join(names)} or {last}"
    if kind not in ("category", "date"):
        rule = f"{', '.join((*names, last))}, or a number"
    raise _error(f"{field}.missing", f"{str(given)[:40]!r} is not {rule}")


def _switch(field: str, given: Any) -> bool:
    if not isinstance(given, bool):
        raise _error(field, f"{str(given)[:40]!r} is not true or false, without quotes")
    return given


def _texts(field: str, given: Any) -> tuple[str, ...]:
    if not isinstance(given, (list, tuple)) or not all(isinstance(one, str) for one in given):
        raise _error(field, "is no list of texts in quotes")
    return tuple(given)


def _error(field: str, reason: str) -> ConfigError:
    return ConfigError(f"task.{field}", reason, public=True)


_FORM = {
    "delimiter": Option(
        "str",
        "",
        f"between the cells of a text file: {' '.join(DELIMITERS)}; empty: detected in its first lines",
        choices=("", *DELIMITERS),
    ),
    "decimal": Option(
        "str", "", "decimal sign of a text file; empty: detected", choices=("", ".", ",")
    ),
    "missing": Option("strs", NOTHING, "cells of a text file that are no value"),
}

TABLE: dict[str, Option] = {
    "file": Option(
        "str",
        "train.csv",
        "file name in the data folder: .csv, .tsv, .txt, .parquet, .pq, .arrow, .feather or .ipc",
        check=data_folder.problem,
    ),
    "test_file": Option(
        "str", "test.csv", "the evaluator's file name in its data folder", check=data_folder.problem
    ),
    **_FORM,
    "features": Option("str", "", "feature columns, comma separated; the same for all sites"),
    "columns": Option(
        "table",
        OptionTable(),
        "of a feature, by its name: type (number, integer, boolean, date or category), levels, reference, missing, indicator, date; and what the sites agreed on (`fl-queue prepare`): mean, sd, median, most_frequent",
    ),
    "fill": Option(
        "str",
        "refuse",
        "missing values of features: an error (refuse); the mean over all sites, and of categories a level of their own (mean); the median of numbers, the more frequent of a boolean, a level of categories (median); or the most frequent level of categories, else as median (most_frequent). For the last two see `fl-queue prepare`",
        choices=("refuse", "mean", "median", "most_frequent"),
    ),
    "objective": Option(
        "str",
        "binary",
        "the target is one of two values (binary) or of several (classes), several columns of true and false (labels), a number (regression), a count (counts), or a time to an event (survival)",
        choices=tuple(OBJECTIVES),
    ),
    "target": Option(
        "str", "label", "target column; of labels several; of survival the time and the event"
    ),
    "classes": Option(
        "str",
        "0,1",
        "values of the target, comma separated; of two the second is what is predicted",
    ),
    "time_grid": Option(
        "floats", (), "survival: ends of the intervals of time, from 0, in the unit of the time"
    ),
    "owner": Option(
        "str",
        "",
        "the column that names whose each row is, for the natural partition and for what is held out",
    ),
    "hidden": Option("ints", (), "hidden layer sizes; empty: a linear model", low=1),
}
