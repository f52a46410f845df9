"""The result of an analysis: read from the run's last state, and shown as tables of text."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from rich.console import RenderableType

from fl_queue.analyses.base import STATE, Analysis
from fl_queue.config.run_config import RunConfig
from fl_queue.coordinator.rounds import runs
from fl_queue.errors import ConfigError, RunStateError
from fl_queue.models.model_store import ModelStore
from fl_queue.protocol import tensor_layout
from fl_queue.reporting import (
    p_values,
    regression_table,
    rich_console,
    site_answers,
    statistics_table,
    survival_tables,
    tree_table,
)
from fl_queue.store import RunState, Store

#: Columns of a result as text.
_TEXT_WIDTH = 160
#: Files of a table, in place of JSON.
_TABLE_FILES = (".csv", ".md", ".html")


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


def read(store: Store, state: RunState, level: float = p_values.LEVEL) -> dict[str, Any]:
    """
    The result of a run, with its name.

    Args:
        level: Of its intervals, between 0 and 1.

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
        if found is not None and config.is_per_site:
            sites = site_answers.results(store, state, analysis, words, store.state_dir)
            found = {**found, "per_site": sites}
    if found is None:
        raise RunStateError(state.name, f"has no result yet: it is {state.state}")
    panel = {"panel": state.panel.to_dict()} if state.panel is not None else {}
    return {"run": state.name, **completed(config, found, level), **panel}


def completed(
    config: RunConfig, found: Mapping[str, Any], level: float = p_values.LEVEL
) -> dict[str, Any]:
    """
    A result with the task and the file that it is about, with p-values and intervals.

    Args:
        found: Of the analysis.
        level: Of the intervals, between 0 and 1.
    """
    if config.run.task == "regression":
        found = regression_table.completed(found, level)
    else:
        found = survival_tables.completed(found, level)
    if found.get("per_site"):
        sites = found["per_site"].items()
        found = {**found, "per_site": {site: completed(config, one, level) for site, one in sites}}
    assert config.analysis is not None
    where = [one.text for one in config.analysis.where]
    about = {"task": config.run.task, "file": config.task["file"]} | (
        {"where": where} if where else {}
    )
    return {**about, **found}


def file_text(found: Mapping[str, Any], suffix: str) -> str:
    """
    The result as the text of a file.

    Args:
        found: Of ``completed``.
        suffix: Of the file; JSON unless there is another form.

    Raises:
        ConfigError: There is no such form of it.
    """
    if suffix in _TABLE_FILES:
        if found["task"] == "trees":
            raise ConfigError(
                "--output", "the result of trees is written as .json; the trees: `fl-queue export`"
            )
        is_fit = found["task"] == "regression"
        text = (regression_table if is_fit else statistics_table).file_text(found, suffix)
        assert isinstance(text, str)  # Both have all of these forms.
        return text
    return json.dumps(found, indent=2, sort_keys=True) + "\n"


def text(found: Mapping[str, Any]) -> str:
    """The result as tables of text, as a terminal shows them. Args: ``found``: of ``completed``."""
    out = io.StringIO()
    console = rich_console.console(file=out, width=_TEXT_WIDTH, color_system=None)
    for part in renderables(found):
        console.print(part)
    return out.getvalue()


def renderables(found: Mapping[str, Any]) -> Iterator[RenderableType]:
    """The result as tables. Args: ``found``: of ``completed``."""
    if found["task"] == "regression":
        yield from regression_table.renderables(found)
        yield from _lost(found)
        return
    if found["task"] == "trees":
        yield from tree_table.renderables(found)
        return
    yield from _statistics(found)
    for site, one in (found.get("per_site") or {}).items():
        yield rich_console.text(f"\n{site} alone")
        yield from _statistics(one)


def _statistics(found: Mapping[str, Any]) -> Iterator[RenderableType]:
    yield rich_console.text(statistics_table.header(found))
    for part in statistics_table.tables(found):
        if part.titles:
            table = rich_console.table(*part.titles)
            for row in part.rows:
                table.add_row(*row)
            yield table
        if part.note:
            yield rich_console.text(part.note)
    yield from survival_tables.renderables(found["survival"])
    for line in statistics_table.footer(found):
        yield rich_console.text(line)


def _lost(found: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Lines about the panel of a fit, if it has lost a client."""
    panel = found.get("panel")
    if panel is None or not panel["lost"]:
        return
    yield rich_console.text(f"panel: {', '.join(panel['clients'])}")
    for one in panel["lost"]:
        where = f"at step {one['step']}, {one['at']}"
        yield rich_console.text(f"lost: {one['client']} {where}: {one['reason']}")
