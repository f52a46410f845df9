"""
A site's policy: what its worker shows of the rows of its tables, whatever a config asks.

A TOML file of the site, ``worker client --policy FILE``; read for each job, so that an edit holds from the next one on.
No Redis here.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from blake3 import blake3

from fl_queue.analyses import filters
from fl_queue.analyses.base import MAX_ROUNDING, Limits
from fl_queue.analyses.filters import Condition
from fl_queue.common.options import Option, as_plain, unknown_key
from fl_queue.common.safe_json import dumps
from fl_queue.config.analysis_catalog import ANALYSES
from fl_queue.config.run_config import RunConfig
from fl_queue.config.task_catalog import columns_of
from fl_queue.errors import ConfigError, DataError, PolicyRefusal

#: Name of the field in messages, and its option.
_FILE = "--policy"

#: A training of a model, and metrics of one that is given, beside the analyses.
_TRAIN, _EVALUATE = "train", "evaluate"
_KINDS = (*ANALYSES, _TRAIN, _EVALUATE)


def _allow_problem(names: tuple[str, ...]) -> str | None:
    wrong = [name for name in names if name not in _KINDS]
    return f"{wrong[0][:40]!r} is not one of {', '.join(_KINDS)}" if wrong else None


#: What the owner of a site consents to with ``trees = "clear"``, shown at its worker's start.
TREES_IN_CLEAR = (
    'This site\'s policy has trees = "clear": for each tree it sends sums of its rows by bin and node. No sum is of fewer '
    "than min_cell rows, but all of them together are nearly the rows of a small table."
)

#: Name -> type, default, limits and text of each rule.
RULES: dict[str, Option] = {
    "min_rows": Option(
        "int",
        50,
        "fewest rows of a table, and of the training part of any data, that anything is made of, 1 or more",
        low=1,
    ),
    "min_cell": Option(
        "int", 10, "fewest rows behind any number that is shown, 1 or more; 1: any", low=1
    ),
    "dominance": Option(
        "float",
        15.0,
        "a sum of numbers that are not negative is withheld where all rows but the two largest have less than so many per cent of the largest; 0: it is shown",
        low=0,
        high=100,
    ),
    "max_questions": Option(
        "int",
        50,
        "different questions that are answered in a day (UTC), of which a fit is one, plus one for each 20 steps; 0: none",
        low=0,
    ),
    "max_parameters": Option(
        "float", 0.1, "parameters of a regression for each row of the table", low=0, newer=True
    ),
    "max_numbers": Option(
        "float",
        0.5,
        "numbers that all steps of one fit show, for each cell (row and column) that it reads",
        low=0,
        newer=True,
    ),
    "max_levels": Option("int", 40, "levels of a category that a question may list", low=1),
    "name_levels": Option(
        "bool",
        True,
        "names of levels that a question does not list are shown (task.vocabulary): of a category with up to max_levels that have min_cell rows",
        newer=True,
    ),
    "columns": Option(
        "strs", (), 'columns that may be asked about, patterns such as ["lab_*"]; empty: all'
    ),
    "never": Option(
        "strs", (), 'columns that do not exist for a question, patterns such as ["name", "*_id"]'
    ),
    "filters": Option(
        "strs",
        (),
        'conditions that task.where may have, such as ["sex", "age >= 18", "age < *"]: a name lets in equality with any value, a star any value; empty: none',
        check=filters.problem,
        newer=True,
    ),
    "allow": Option(
        "strs",
        (),
        f"what is answered: {', '.join(_KINDS)}; empty: all that the worker's --task-allow lets in",
        check=_allow_problem,
        newer=True,
    ),
    "per_site": Option(
        "bool",
        True,
        "whether the figures of an evaluation, and of statistics with task.per_site, are shown for this site alone; false: only together with those of others",
        newer=True,
    ),
    "round": Option(
        "int",
        0,
        "counts of statistics are rounded to multiples of this, halves up; sums are not, and quantiles and survival curves are not answered; 0: none is rounded",
        low=0,
        high=MAX_ROUNDING,
        newer=True,
    ),
    "share": Option(
        "bool",
        False,
        "a config may have the site train with a share of its rows (data.partition other than site, train_per_class), and so choose which",
        newer=True,
    ),
    "trees": Option(
        "str",
        "masked",
        'whether trees are grown of the tables: "masked", only under secure sums; "clear", also without, where the '
        'histograms of a small site are nearly its rows; "no"',
        choices=("masked", "clear", "no"),
        newer=True,
    ),
}


@dataclass(frozen=True)
class SitePolicy:
    """
    The rules of a site.

    Args:
        min_rows, min_cell, dominance, max_questions, max_parameters, max_numbers, max_levels, name_levels, columns,
            never, filters, allow, per_site, round, share, trees: See ``RULES``.
    """

    min_rows: int = RULES["min_rows"].default
    min_cell: int = RULES["min_cell"].default
    dominance: float = RULES["dominance"].default
    max_questions: int = RULES["max_questions"].default
    max_parameters: float = RULES["max_parameters"].default
    max_numbers: float = RULES["max_numbers"].default
    max_levels: int = RULES["max_levels"].default
    name_levels: bool = RULES["name_levels"].default
    columns: tuple[str, ...] = ()
    never: tuple[str, ...] = ()
    filters: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    per_site: bool = True
    round: int = RULES["round"].default
    share: bool = False
    trees: str = RULES["trees"].default

    @classmethod
    def of_mapping(cls, given: Mapping[str, Any]) -> SitePolicy:
        """
        Check rules, and complete them.

        Raises:
            ConfigError: Names the rule, and the fix.
        """
        for key in given:
            if key not in RULES:
                raise unknown_key(key, RULES)
        return cls(**{key: RULES[key].parse(key, value) for key, value in given.items()})

    @property
    def digest(self) -> str:
        """Digest of the rules, as receipts have it; hexadecimal."""
        rules = self.to_dict()
        noted = {
            name: value
            for name, value in rules.items()
            if not RULES[name].newer or value != as_plain(RULES[name].default)
        }
        return blake3(dumps(noted).encode()).hexdigest()[:16]

    @property
    def limits(self) -> Limits:
        """What an analysis needs of it."""
        names = self.max_levels if self.name_levels else 0
        return Limits(self.min_rows, self.min_cell, self.dominance, names, self.round)

    def to_dict(self) -> dict[str, Any]:
        """The rules as JSON and TOML have them."""
        return {name: as_plain(getattr(self, name)) for name in RULES}

    def check_levels(self, categories: Mapping[str, tuple[str, ...]]) -> None:
        """Raise PolicyRefusal if a question lists more levels of a category than one may."""
        for name, levels in categories.items():
            if len(levels) > self.max_levels:
                raise PolicyRefusal(
                    f"{name} has more levels than a question may list ({self.max_levels}, max_levels)"
                )

    def check_where(self, conditions: Sequence[Condition]) -> None:
        """Raise PolicyRefusal unless rows may be chosen so, and DataError for a column that is hidden."""
        for one in conditions:
            if not self.is_visible(one.column):
                raise DataError("table", f"has no column {one.column}", public=True)
            if not any(map(one.is_let_in, self.filters)):
                raise PolicyRefusal(
                    f"a condition on {one.column} is not in its list (filters); leave it out of task.where"
                )

    def check_asked(self, kind: str, *, is_per_site: bool = False) -> None:
        """
        Raise PolicyRefusal unless an analysis of this name is answered.

        Args:
            is_per_site: Whether the numbers of this site alone will be shown.
        """
        if self.allow and kind not in self.allow:
            raise PolicyRefusal(f"{kind} is not in its list (allow)")
        if is_per_site and not self.per_site:
            raise PolicyRefusal(
                "its numbers are not shown alone (per_site); leave out task.per_site"
            )
        if kind == "trees":
            self._check_trees()

    def check_training(self, config: RunConfig, *, is_evaluated: bool = False) -> None:
        """
        Raise PolicyRefusal unless a model is trained here by a config, and DataError for columns that are hidden.

        Args:
            is_evaluated: Metrics alone are asked for.
        """
        kinds = {_TRAIN, _EVALUATE} if is_evaluated else {_TRAIN}
        if self.allow and not kinds & {*self.allow}:
            raise PolicyRefusal(
                f"{_EVALUATE if is_evaluated else _TRAIN} is not in its list (allow)"
            )
        data = config.data
        chosen = data.train_per_class or data.validation_per_class
        if not self.share and (data.partition != "site" or chosen):
            field = "data.train_per_class" if data.partition == "site" else "data.partition"
            raise PolicyRefusal(
                f"{field} has the client train with a share of its rows (share); set data.partition to site"
            )
        names = columns_of(config.run.task, config.task)
        if names is None and (self.columns or self.never):
            raise PolicyRefusal("the config has to list its columns in task.features")
        for name in names or ():
            if not self.is_visible(name):
                raise DataError("table", f"has no column {name}", public=True)

    def _check_trees(self) -> None:
        """Raise PolicyRefusal unless trees are grown in the clear."""
        if self.trees == "masked":
            raise PolicyRefusal("trees are answered only under secure sums (trees = masked)")
        if self.trees != "clear":
            raise PolicyRefusal("trees are not answered (trees = no)")

    def is_visible(self, name: str) -> bool:
        """
        Whether a column exists for a question.

        A name such as ``hiv;sex`` is two columns in a file that is read by another delimiter: so each part has to be visible.
        """
        parts = [part.strip(' "') for part in re.split(r"[,;\t|]", name)]
        if any(fnmatchcase(one, pattern) for one in (name, *parts) for pattern in self.never):
            return False
        if not self.columns or name in self.columns:
            return True
        return all(any(fnmatchcase(one, pattern) for pattern in self.columns) for one in parts)


def read(path: str) -> SitePolicy:
    """
    The policy of a file. Args: ``path``: empty: that without a file.

    Raises:
        ConfigError: It cannot be read, or a rule cannot be used; no text of it is public.
    """
    if not path:
        return SitePolicy()
    try:
        found = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        return SitePolicy.of_mapping(found)
    except OSError as exc:
        raise _unusable(f"{path} cannot be read: {exc.strerror}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise _unusable(f"{path} is no TOML: {exc}") from exc
    except ConfigError as exc:
        raise _unusable(f"{path}: {exc}") from exc


def checked_file(file: Path | None) -> str:
    """The absolute path of a policy that can be used; empty without one. Raises ConfigError."""
    path = str(file.absolute()) if file is not None else ""
    read(path)
    return path


def _unusable(reason: str) -> ConfigError:
    return ConfigError(
        _FILE, reason, public="this site's policy cannot be used, so nothing is asked"
    )
