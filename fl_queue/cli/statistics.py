"""``fl-queue statistics``, ``fl-queue regression`` and ``fl-queue result``."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from fl_queue.cli import following
from fl_queue.cli.completion import config_argument, run_argument
from fl_queue.cli.evaluate import show
from fl_queue.cli.options import (
    Deployment,
    collect,
    connection_options,
    data_folder,
    file_option,
    json_option,
    output_option,
    set_option,
    signing_option,
)
from fl_queue.cli.output import print_json
from fl_queue.common import files
from fl_queue.config import loading
from fl_queue.config.run_config import RunConfig
from fl_queue.coordinator.rounds import runs
from fl_queue.errors import ConfigError
from fl_queue.experiments import launching
from fl_queue.reporting import (
    analysis_result,
    evaluation_report,
    p_values,
    rich_console,
    statistics_plot,
)

#: Suffixes of plots.
_PLOTS = (".png", ".svg", ".pdf")

_output = output_option(
    "Write the result to this file, too: JSON, its tables as .csv, .md or .html, or a figure of statistics as .png, "
    ".svg or .pdf.",
    required=False,
)


_level = click.option(
    "--level",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=p_values.LEVEL,
    show_default=True,
    help="Of the intervals of a regression and of survival curves.",
)


@dataclass(frozen=True)
class _Asking:
    """What is asked, and of which run."""

    config: str
    name: str
    here: bool
    data: str
    policy: Path | None
    level: float
    overrides: tuple[str, ...]


_asking = collect(
    "asking",
    _Asking,
    config_argument(metavar="CONFIG"),
    click.option(
        "--run",
        "name",
        default="",
        metavar="NAME",
        help="Name of the run; the result of a run that has ended is shown again. Default: the name of CONFIG.",
    ),
    click.option(
        "--here", is_flag=True, help="Show what this site would send, and withhold, without Redis."
    ),
    click.option("--data", default="", metavar="FOLDER", help="With --here: folder of the table."),
    file_option("--policy", "policy", help="With --here: the site's policy file."),
    _level,
    set_option(),
)


@click.command()
@_asking
@click.option(
    "--per-site",
    "is_per_site",
    is_flag=True,
    help="Show the numbers of each site alone, too: task.per_site = true. Sites may refuse that.",
)
@_output
@json_option
@connection_options
@signing_option
def statistics(
    deployment: Deployment,
    asking: _Asking,
    is_per_site: bool,
    output: Path | None,
    as_json: bool,
) -> None:
    """
    Compute statistics of the sites' tables, and show them.

    CONFIG is a TOML file with run.task = "statistics" and its questions below [task]. Each site sends sums over its
    rows, within its policy (`fl-queue policy show`); they are exact, so the numbers are those of all tables together.
    """
    if is_per_site:
        asking = replace(asking, overrides=(*asking.overrides, "task.per_site=true"))
    _show(_ask(deployment, asking, "statistics"), output, as_json)


@click.command()
@_asking
@_output
@json_option
@connection_options
@signing_option
def regression(deployment: Deployment, asking: _Asking, output: Path | None, as_json: bool) -> None:
    """
    Fit a regression to the sites' tables, and show its coefficients.

    CONFIG is a TOML file with run.task = "regression", its family, target and features below [task]. In each of a few
    rounds the sites send sums over their rows, within their policies; coefficients and errors are those of all tables
    together.
    """
    _show(_ask(deployment, asking, "regression"), output, as_json)


def _ask(deployment: Deployment, asking: _Asking, task: str) -> Mapping[str, Any]:
    """The result of an analysis, once its run has ended."""
    loaded = loading.load(asking.config, asking.overrides)
    if loaded.run.task != task:
        raise ConfigError("run.task", f"is {loaded.run.task}; set it to {task}")
    if asking.here:
        return _here(deployment, loaded, asking)
    if asking.data or asking.policy is not None:
        field = "--data" if asking.data else "--policy"
        raise ConfigError(field, "is for --here; a site has its own")
    name = asking.name or launching.default_run_name(asking.config)
    return computed(deployment, loaded, name, asking.level)


def computed(
    deployment: Deployment, config: RunConfig, name: str, level: float = p_values.LEVEL
) -> dict[str, Any]:
    """
    The result of an analysis, once its run has ended; at once, if it has.

    Args:
        name: Of the run.
        level: Of its intervals.

    Raises:
        RunStateError: It failed, or has another config.
        StoreUnavailable: Redis is not reachable.
    """
    deployment = deployment.with_config(config)
    with ExitStack() as started:
        return analysis_result.read(
            *following.completed(started, deployment, name, config, "result"), level
        )


@click.command()
@run_argument()
@_level
@_output
@json_option
@connection_options
def result(
    deployment: Deployment, run: str, level: float, output: Path | None, as_json: bool
) -> None:
    """Show the result of RUN, an analysis of tables or an evaluation."""
    store = deployment.open()
    state = runs.find_run(store, run)
    if evaluation_report.is_evaluation(store, state):
        if level != p_values.LEVEL:
            raise ConfigError(
                "--level", f"is not of an evaluation, whose intervals are of {p_values.LEVEL}"
            )
        show(evaluation_report.read(store, state), output, as_json)
        return
    _show(analysis_result.read(store, state, level), output, as_json)


def _here(deployment: Deployment, config: RunConfig, asking: _Asking) -> dict[str, Any]:
    """The result of this site alone, under its policy; nothing is sent, and nothing noted."""
    from fl_queue.client import sums

    if not asking.data:
        raise ConfigError("--data", "is missing; name the folder of the table")
    site = replace(
        deployment.site(),
        data_dir=data_folder(asking.data),
        policy=str(asking.policy.absolute() if asking.policy else ""),
    )
    return analysis_result.completed(config, sums.preview(site, config), asking.level)


def _show(found: Mapping[str, Any], output: Path | None, as_json: bool) -> None:
    if output is not None and output.suffix.lower() in _PLOTS:
        statistics_plot.plot(output, found)
    elif output is not None:
        files.write(output, analysis_result.file_text(found, output.suffix).encode())
    if as_json:
        print_json(found)
        return
    console = rich_console.console()
    for part in analysis_result.renderables(found):
        console.print(part)
