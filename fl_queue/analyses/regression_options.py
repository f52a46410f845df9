"""Options of the task ``regression``, as the config's ``[task]`` has them: read and checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fl_queue.analyses.cox import Cox
from fl_queue.analyses.design import INTERCEPT, PARTS, Design, Feature
from fl_queue.analyses.questions import MAX_LEVELS
from fl_queue.common.options import unknown_key
from fl_queue.errors import ConfigError

_KEYS = ("type", "levels", "reference", "date")
_TYPES = ("number", "integer", "boolean", "date", "category")
#: Coefficients of a fit: their information has 2**17 words.
MAX_COEFFICIENTS = 512


def design_of(options: Mapping[str, Any]) -> Design:
    """
    Read what a regression is about.

    Raises:
        ConfigError: Names the option, and the fix.
    """
    names = _names(options["features"])
    if not names:
        raise ConfigError("task.features", "is empty; list the columns, comma separated")
    time, target = _target(options)
    strata, classes = _names(options["strata"]), tuple(_names(options["classes"]))
    for name in options["columns"]:
        known = [*names, *strata]
        if name not in known:
            raise unknown_key(f"task.columns.{name}", [f"task.columns.{one}" for one in known])
    if classes and options["family"] != "logistic":
        raise ConfigError("task.classes", "are those of family logistic; leave them out")
    if classes and len(set(classes)) != 2:
        raise ConfigError("task.classes", "are not two different texts; the second is explained")
    found = Design(
        tuple(_feature(name, options["columns"].get(name, {})) for name in names),
        target,
        classes,
        options["offset"],
        options["weights"],
        time,
        tuple(_stratum(name, options) for name in strata),
    )
    more = (target, found.offset, found.weights, time)
    used = [name for name in (*names, *strata, *more) if name]
    twice = sorted({name for name in used if used.count(name) > 1})
    if twice:
        raise ConfigError(
            "task.features",
            f"{twice[0]} is listed twice, or is the target, a stratum, the offset or the weights, too",
        )
    if len(found.terms) >= MAX_COEFFICIENTS:
        raise ConfigError(
            "task.features",
            f"{len(found.terms) + 1} coefficients are more than {MAX_COEFFICIENTS}; leave columns out",
        )
    return found


def _target(options: Mapping[str, Any]) -> tuple[str, str]:
    """Columns of the time, which only family cox has, and of the target. Raises ConfigError."""
    names = _names(options["target"])
    if options["family"] == Cox.name:
        if len(names) != 2:
            raise ConfigError(
                "task.target",
                'is not two columns; family cox wants "time,event", such as "months,died"',
            )
        return names[0], names[1]
    if not names:
        raise ConfigError("task.target", "is empty; name the column that is explained")
    for name in ("strata", "ties"):
        if options[name]:
            raise ConfigError(f"task.{name}", "is for family cox; leave it out")
    return "", options["target"]


def _stratum(name: str, options: Mapping[str, Any]) -> Feature:
    found = _feature(name, options["columns"].get(name, {}))
    if not found.levels:
        raise ConfigError(
            f"task.columns.{name}",
            f'has no levels, by which strata are made; add {name} = {{ levels = ["I", "II"] }}',
        )
    return found


def check(options: Mapping[str, Any]) -> None:
    """Raise ConfigError for options that contradict each other; names the option to change."""
    found = design_of(options)
    if INTERCEPT in {one.name for one in found.features}:
        raise ConfigError(
            "task.features", f"{INTERCEPT} is the intercept's name; rename the column"
        )
    for name in ("weights", "robust"):
        if options["family"] == Cox.name and options[name]:
            raise ConfigError(f"task.{name}", "is not for family cox; leave it out")
    if options["ridge"] and options["robust"]:
        raise ConfigError(
            "task.robust", "has no meaning with task.ridge, which biases; leave one out"
        )


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _feature(name: str, given: Any) -> Feature:
    """A column by its table in ``task.columns``. Raises ConfigError."""
    field = f"task.columns.{name}"
    if not isinstance(given, Mapping):
        raise ConfigError(field, 'is no table such as { type = "category", levels = ["I", "II"] }')
    for key in given:
        if key not in _KEYS:
            raise unknown_key(f"{field}.{key}", [f"{field}.{one}" for one in _KEYS])
    kind = given.get("type", "category" if "levels" in given else "number")
    if kind not in _TYPES:
        raise ConfigError(f"{field}.type", f"{str(kind)[:40]!r} is not one of {', '.join(_TYPES)}")
    levels, parts = (_texts(f"{field}.{key}", given.get(key, ())) for key in ("levels", "date"))
    if parts and (
        kind != "date" or len(set(parts)) < len(parts) or not {*parts} <= {"year", *PARTS}
    ):
        raise ConfigError(
            f"{field}.date", f"is for dates, and lists some of year, {', '.join(PARTS)}, each once"
        )
    if kind != "category":
        if levels or "reference" in given:
            raise ConfigError(f"{field}.levels", 'is for type = "category"')
        return Feature(name, is_date=kind == "date", parts=parts)
    return _category(field, name, levels, given.get("reference"))


def _texts(field: str, given: Any) -> tuple[str, ...]:
    if not isinstance(given, list | tuple) or not all(isinstance(one, str) for one in given):
        raise ConfigError(field, "is no list of texts in quotes")
    return tuple(given)


def _category(field: str, name: str, levels: tuple[str, ...], reference: Any) -> Feature:
    if len(levels) < 2 or len(set(levels)) < len(levels) or len(levels) > MAX_LEVELS:
        raise ConfigError(
            f"{field}.levels",
            f"are not 2 to {MAX_LEVELS} different texts; list the column's values",
        )
    if reference is not None and reference not in levels:
        raise ConfigError(f"{field}.reference", "is not one of the levels")
    return Feature(name, levels, levels[0] if reference is None else reference)
