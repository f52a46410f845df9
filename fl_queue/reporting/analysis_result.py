"""The result of an analysis: read from the run's last state, and shown as tables of text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import RenderableType

from fl_queue.analyses.base import STATE, Analysis
from fl_queue.config.run_config import RunConfig
from fl_queue.coordinator.rounds import runs
from fl_queue.errors import ConfigError, RunStateError
from fl_queue.models.model_store import ModelStore
from fl_queue.protocol import tensor_layout
from fl_queue.reporting import regression_table, rich_console, survival_tables
from fl_queue.store import RunState, Store

#: Files of a table, in place of JSON.
_TABLE_FILES = (".csv", ".md", ".html")
#: Shown for a number that there is not.
_NONE = "-"


def analysis_of(store: Store, state: RunState) -> Analysis:
    """
    The analysis of a run.

    Raises:
        RunStateError: The run trains a model.
    """
    found = runs.current_config(store, state.run_id).analysis
    if found is None:
        raise RunStateError(state.name, "trains a model; see `fl-queue history`")
    return found


def read(store: Store, state: RunState) -> dict[str, Any]:
    """
    The result of a run, with its name.

    Raises:
        RunStateError: The run trains a model, or has no result yet.
        UnknownVersion: Its last state is neither on this machine nor on the data server.
    """
    analysis = analysis_of(store, state)
    config = runs.current_config(store, state.run_id)
    found = None
    if state.version is not None:
        assert store.state_dir is not None  # A command's connection has one.
        models = ModelStore(store, state.run_id, config.redis.chunk_bytes, store.state_dir)
        manifest, body = models.load_version(state.version)
        words = tensor_layout.views(manifest, body)[STATE].astype(np.int64)
        found = analysis.result(words)
    if found is None:
        raise RunStateError(state.name, f"has no result yet: it is {state.state}")
    return {"run": state.name, **completed(config, found)}


def completed(config: RunConfig, found: Mapping[str, Any]) -> dict[str, Any]:
    """A result with the task and the file that it is about, and with p-values. Args: ``found``: of the analysis."""
    if config.run.task == "regression":
        found = regression_table.completed(found)
    else:
        found = survival_tables.with_p_values(found)
    return {"task": config.run.task, "file": config.task["file"], **found}


def file_text(found: Mapping[str, Any], suffix: str) -> str:
    """
    The result as the text of a file.

    Args:
        found: Of ``completed``.
        suffix: Of the file; JSON unless there is another form.

    Raises:
        ConfigError: There is no such form.
    """
    if suffix in _TABLE_FILES:
        text = regression_table.file_text(found, suffix) if found["task"] == "regression" else None
        if text is None:
            raise ConfigError(
                "--output",
                f"the result of {found['task']} is written as .json; {suffix} is for regressions",
            )
        return text
    return json.dumps(found, indent=2, sort_keys=True) + "\n"


def renderables(found: Mapping[str, Any]) -> Iterator[RenderableType]:
    """The result as tables. Args: ``found``: of ``completed``."""
    if found["task"] == "regression":
        yield from regression_table.renderables(found)
        return
    sites = f"{found['sites']} site{'' if found['sites'] == 1 else 's'}"
    yield rich_console.text(f"{found['file']}: {found['rows']:,} rows at {sites}")
    if found["numbers"]:
        yield _numbers(found["numbers"])
    for name, levels in found["levels"].items():
        yield _listed(name, levels, ("rows",))
    for name, named in found.get("vocabulary", {}).items():
        listed = "too many to be found" if named is None else ", ".join(named) or _NONE
        yield rich_console.text(f"levels of {name}: {listed}")
    for name, groups in found["groups"].items():
        yield _listed(name, groups, ("rows", "mean", "sd"))
    for name, table in found["tables"].items():
        yield from _crossed(name, table)
    if found["correlation"] is not None:
        yield from _matrix(found["correlation"])
    yield from survival_tables.renderables(found["survival"])
    for line in (_withheld(found), _few(found)):
        if line:
            yield rich_console.text(line)


def _numbers(found: Mapping[str, Mapping[str, Any]]) -> RenderableType:
    asked = next(iter(found.values())).get("quantiles", ())
    table = rich_console.table("column", "rows", "missing", "mean", "sd", *map(_quantile, asked))
    for name, one in found.items():
        quantiles = [_number(quantile["value"]) for quantile in one.get("quantiles", ())]
        table.add_row(
            name + _mark(one),
            f"{one['rows']:,}",
            _count(one["missing"]),
            _number(one["mean"]),
            _number(one["sd"]),
            *quantiles,
        )
    return table


def _quantile(found: Mapping[str, Any]) -> str:
    return f"{100 * found['quantile']:g} %"


def _listed(name: str, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> RenderableType:
    table = rich_console.table(name, *columns)
    for row in rows:
        if row["rows"] or row["withheld"]:
            cells = (_count(row["rows"]) if c == "rows" else _number(row[c]) for c in columns)
            is_shown = row["rows"] or not row["withheld"]
            shown = cells if is_shown else (_NONE for _ in columns)
            table.add_row(f"{row['level']}{_mark(row)}", *shown)
    return table


def _crossed(name: str, found: Mapping[str, Any]) -> Iterator[RenderableType]:
    table = rich_console.table(name, *found["columns"])
    for level, counts, withheld in zip(
        found["rows"], found["counts"], found["withheld"], strict=True
    ):
        cells = [
            f"{count or _NONE}*" if sites else f"{count:,}"
            for count, sites in zip(counts, withheld, strict=True)
        ]
        table.add_row(level, *cells)
    yield table
    if "chi_square" in found:
        yield rich_console.text(
            f"chi-square {found['chi_square']:.6g} with {found['degrees_of_freedom']} degrees of freedom"
        )


def _matrix(found: Mapping[str, Any]) -> Iterator[RenderableType]:
    if found["correlation"] is None:
        yield rich_console.text("correlation: not enough rows are shown")
        return
    table = rich_console.table(f"correlation, {found['rows']:,} rows", *found["columns"])
    for name, row in zip(found["columns"], found["correlation"], strict=True):
        table.add_row(name, *map(_number, row))
    yield table


def _mark(found: Mapping[str, Any]) -> str:
    return "*" if found["withheld"] else ""


def _withheld(found: Mapping[str, Any]) -> str:
    """A line if anything is withheld."""
    listed = [
        *found["numbers"].values(),
        *(row for rows in found["levels"].values() for row in rows),
        *(row for rows in found["groups"].values() for row in rows),
    ]
    crossed = any(
        site for table in found["tables"].values() for row in table["withheld"] for site in row
    )
    correlated = found["correlation"] is not None and bool(found["correlation"]["withheld"])
    survival = survival_tables.is_withheld(found["survival"])
    if crossed or correlated or survival or any(row["withheld"] for row in listed):
        return (
            "* withheld by one site or more, whose rows are not counted there (--json: by how many)"
        )
    return ""


def _few(found: Mapping[str, Any]) -> str:
    """A line if sites count levels of few rows as others."""
    names = [name for name, rows in found["levels"].items() if rows[0]["few"]]
    if not names:
        return ""
    return f"{', '.join(names)}: sites with few rows of a level, or none, count them as other"


def _number(value: float | None) -> str:
    return _NONE if value is None else f"{value:.6g}"


def _count(value: int | None) -> str:
    return _NONE if value is None else f"{value:,}"
