"""
Preparation of a config of the task ``table``: what the sites agree on is taken from statistics of all their rows.

The statistics are an analysis as any other, with its policy, ledger and exact sums; what was agreed is written into the
config, which is a record of it, and the training sends no statistics of its own for these columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from fl_queue.common.options import unknown_key
from fl_queue.config import table_options
from fl_queue.config.run_config import RunConfig
from fl_queue.config.table_options import Feature, names_of
from fl_queue.config.task_catalog import TASKS
from fl_queue.errors import ConfigError, DataError
from fl_queue.tables.schema import NOTHING

#: Fields that the statistics have in common with the training.
_SHARED = {
    "redis": (),
    "security": (),
    "clients": ("include", "exclude", "active_s"),
    "round": ("cohort", "quorum", "deadline_s", "grace_s", "max_abandoned"),
    "data": ("dir",),
}
_MEDIAN = 0.5
#: What a missing number counts as, once it is agreed.
_FILLS = ("median", "most_frequent")


@dataclass(frozen=True)
class Preparation:
    """
    A config, and what the sites are to agree on for it.

    Args:
        tables: The config as it is given, with what the environment sets.
        file: Without that, as some of it is secret.
        options: Its ``[task]``, complete.
        features: Of it.
        numbers: Columns whose mean and standard deviation are wanted: booleans as 0 and 1, and the target of a regression.
        medians: Columns whose median is wanted.
        categories: Categories whose most frequent level is wanted.
        unnamed: Categories whose levels are wanted; they are asked for first.
    """

    tables: Mapping[str, Any]
    file: Mapping[str, Any]
    options: Mapping[str, Any]
    features: Sequence[Feature]
    numbers: tuple[str, ...]
    medians: tuple[str, ...]
    categories: tuple[str, ...]
    unnamed: tuple[str, ...]

    @classmethod
    def of_tables(cls, tables: Mapping[str, Any], file: Mapping[str, Any]) -> Preparation:
        """
        Find what a config lacks.

        Args:
            tables, file: Of ``loading.read_tables``, with the environment and without.

        Raises:
            ConfigError: The config is none of the task ``table``, or a field of it cannot be used.
        """
        task = tables.get("run", {}).get("task", "")
        if task != "table":
            raise ConfigError("run.task", f'is {task or "missing"}; set it to "table"')
        options = _options(tables.get("task", {}))
        features = table_options.features_of(options, is_open=True)
        plain = [one for one in features if one.kind not in ("category", "date")]
        target = _open_target(options)
        found = cls(
            tables,
            file,
            options,
            features,
            (*(one.name for one in plain if one.unit is None or one.missing in _FILLS), *target),
            tuple(one.name for one in plain if one.missing == "median"),
            tuple(
                one.name
                for one in features
                if one.missing == "most_frequent"
                and one.kind == "category"
                and not one.most_frequent
            ),
            tuple(one.name for one in features if one.kind == "category" and not one.levels),
        )
        found._check()
        return found

    @property
    def is_complete(self) -> bool:
        """Whether there is nothing to agree on."""
        return not (self.numbers or self.categories or self.unnamed)

    def vocabulary(self) -> RunConfig:
        """The question about names of levels."""
        return self._asked({"vocabulary": list(self.unnamed)})

    def with_levels(self, found: Mapping[str, Any]) -> Preparation:
        """
        The same with the levels that sites have named, sorted by code point.

        Args:
            found: The result of ``vocabulary``.

        Raises:
            DataError: There are none, or too many to be found.
            ConfigError: They do not fit the config.
        """
        given = (deepcopy(dict(self.tables)), deepcopy(dict(self.file)))
        for name, levels in found["vocabulary"].items():
            if not levels:
                why = "no site names a level" if levels is not None else "there are too many levels"
                raise DataError(f"column {name}", f"{why}; list them in task.columns.{name}")
            for tables in given:
                _note(_columns(tables), name, {"levels": levels})
        return Preparation.of_tables(*given)

    def survey(self) -> RunConfig:
        """The statistics that are asked for."""
        levels = {
            one.name: list(one.levels) for one in self.features if one.name in self.categories
        }
        asked: dict[str, Any] = {"numbers": list(self.numbers), "levels": levels}
        if self.medians:
            asked["quantiles"] = [_MEDIAN]
        return self._asked(asked)

    def _asked(self, questions: Mapping[str, Any]) -> RunConfig:
        form = {key: self.options[key] for key in ("file", "delimiter", "decimal")}
        task = {**form, **questions}
        return RunConfig.from_dict(
            {"run": {"task": "statistics"}, **_shared(self.tables), "task": task}
        )

    def agreed(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """
        The config with what the statistics give.

        Args:
            found: The result of ``survey``.

        Raises:
            DataError: Too little of a column is shown.
            ConfigError: What was agreed does not fit the config.
        """
        made = deepcopy(dict(self.file))
        columns = _columns(made)
        for name in self.numbers:
            _note(columns, name, self._of_number(name, found["numbers"][name]))
        for name in self.categories:
            listed = {
                one["level"]: one["rows"] for one in found["levels"][name][: self._levels(name)]
            }
            _note(columns, name, {"most_frequent": _most_frequent(name, listed)})
        RunConfig.from_dict(made)
        return made

    def _levels(self, name: str) -> int:
        return len(self._feature(name).levels)

    def _feature(self, name: str) -> Feature:
        return next(one for one in self.features if one.name == name)

    def _of_number(self, name: str, shown: Mapping[str, Any]) -> dict[str, float]:
        if shown["mean"] is None or shown["sd"] is None:
            raise _not_shown(name, "mean and sd")
        agreed = {"mean": shown["mean"], "sd": shown["sd"]}
        if name in self.medians:
            agreed["median"] = shown["quantiles"][0]["value"]
            if agreed["median"] is None:
                raise _not_shown(name, "median")
        elif any(one.name == name and one.missing == "most_frequent" for one in self.features):
            agreed["most_frequent"] = float(shown["mean"] > 0.5)
        return agreed

    def _check(self) -> None:
        """Raise ConfigError for what would be refused only after the sites were asked."""
        more = sorted(set(self.options["missing"]) - set(NOTHING))
        if more:
            raise ConfigError(
                "task.missing",
                f"{more[0][:40]!r} is a value for statistics, which know {', '.join(NOTHING[1:])} and empty cells only",
            )
        if self.tables.get("clients", {}).get("kind") == "simulation":
            raise ConfigError("clients.kind", "is simulation, which has no sites to be asked")
        if self.unnamed:
            self.vocabulary()
        elif not self.is_complete and (self.numbers or self.categories):
            self.survey()
        columns = deepcopy(dict(self.tables))
        given = _columns(columns)
        for name in self.unnamed:
            _note(given, name, {"levels": [self._feature(name).reference or "level"]})
        for name in self.numbers:
            agreed = {"mean": 0.0, "sd": 1.0}
            fill = next((one.missing for one in self.features if one.name == name), "")
            if fill in _FILLS:
                agreed[str(fill)] = 0.0
            _note(given, name, agreed)
        for name in self.categories:
            _note(given, name, {"most_frequent": given[name]["levels"][0]})
        RunConfig.from_dict(columns)


def _options(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """The ``[task]`` of a config, complete. Raises ConfigError."""
    known = TASKS["table"].options
    for key in given:
        if key not in known:
            raise unknown_key(f"task.{key}", [f"task.{name}" for name in known])
    options = {
        key: field.parse(f"task.{key}", given[key]) if key in given else field.default
        for key, field in known.items()
    }
    table_options.check(options, is_open=True)
    return options


def _open_target(options: Mapping[str, Any]) -> list[str]:
    """The target, if it has a unit that is not agreed yet."""
    if options["objective"] != "regression" or table_options.target_unit(options) is not None:
        return []
    return names_of(options["target"])


def _shared(tables: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for section, keys in _SHARED.items():
        given = tables.get(section, {})
        found[section] = {key: given[key] for key in keys or given if key in given}
    return found


def _columns(tables: dict[str, Any]) -> dict[str, Any]:
    """The table ``task.columns`` of a config, made where there is none."""
    found: dict[str, Any] = tables.setdefault("task", {}).setdefault("columns", {})
    return found


def _note(columns: dict[str, Any], name: str, agreed: Mapping[str, Any]) -> None:
    columns[name] = {**columns.get(name, {}), **agreed}


def _most_frequent(name: str, rows: Mapping[str, int]) -> str:
    """The level with the most rows; of several the first."""
    found = max(rows, key=lambda level: rows[level])
    if not rows[found]:
        raise _not_shown(name, "most frequent level")
    return found


def _not_shown(name: str, what: str) -> DataError:
    return DataError(
        f"column {name}",
        f"no site shows its {what}, by policy or for want of values; give them in task.columns.{name}",
    )
