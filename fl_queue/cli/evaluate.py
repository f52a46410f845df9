"""``fl-queue evaluate``."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from fl_queue.cli import following
from fl_queue.cli.completion import config_argument
from fl_queue.cli.options import (
    Deployment,
    connection_options,
    interrupt_on_sigterm,
    json_option,
    output_option,
    set_option,
    signing_option,
)
from fl_queue.cli.output import print_json, warn
from fl_queue.config import loading
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import ConfigError
from fl_queue.experiments import evaluating, launching
from fl_queue.reporting import (
    evaluation_matrix,
    evaluation_report,
    evaluation_views,
    rich_console,
)
from fl_queue.store import Store


@dataclass(frozen=True)
class _Asked:
    """What a user asks for. Args: of the command's options."""

    model: str
    config: str | None
    name: str
    rows: str
    overrides: tuple[str, ...]


@click.command()
@click.argument("model")
@config_argument(metavar="[CONFIG]", required=False)
@click.option(
    "--run",
    "name",
    default="",
    metavar="NAME",
    help="Name of the new run. Default: the name of MODEL, and -evaluation.",
)
@click.option(
    "--held-out",
    is_flag=True,
    help="Evaluate on the rows that sites hold out from training (data.validation_fraction), in place of all.",
)
@click.option(
    "--matrix",
    "is_matrix",
    is_flag=True,
    help="Evaluate the own model of each site in the round that made the version, and the merged one, at all sites. The "
    "run has to keep updates (model.keep_updates).",
)
@click.option(
    "--figure",
    default="",
    metavar="NAME",
    help="With --matrix: the figure that is shown, such as auc.",
)
@set_option()
@output_option(
    "Write the report, too: .json, .csv, .md, .html, or the curves (of a matrix, a heat map) as .png or .svg.",
    required=False,
)
@json_option
@connection_options
@signing_option
def evaluate(  # noqa: PLR0913 - the options of a command
    deployment: Deployment,
    model: str,
    config: str | None,
    name: str,
    held_out: bool,
    is_matrix: bool,
    figure: str,
    overrides: tuple[str, ...],
    output: Path | None,
    as_json: bool,
) -> None:
    """
    Evaluate MODEL at all sites, without training it.

    MODEL is a file that `fl-queue export` has written, or a torch file, or a run: RUN (its newest version), RUN@3,
    RUN@best, RUN@TAG. CONFIG describes task and data, as for a training; of a run its own is taken where none is named.

    Each site sends sums over its rows, within its policy: AUC, calibration and other figures follow from them, with
    intervals, together and for each site. A site that is away is left out and named. With a policy of
    allow = ["evaluate"] a site takes part in evaluations alone, such as for an external validation.

    With --matrix, MODEL is a run: a row for the model of each site before it was merged, a column for the data of each.
    """
    asked = _Asked(model, config, name, "held_out" if held_out else "all", overrides)
    if not is_matrix:
        if figure:
            raise ConfigError("--figure", "is for --matrix; leave it out")
        evaluation_views.check_suffix(output)
        show(_evaluated(deployment, asked), output, as_json)
        return
    if name:
        raise ConfigError(
            "--run", "is for one evaluation; a matrix is several, with names of their own"
        )
    evaluation_matrix.check_suffix(output)
    _show_matrix(_matrix(deployment, asked, figure), output, as_json)


def _show_matrix(found: dict[str, Any], output: Path | None, as_json: bool) -> None:
    if output is not None:
        evaluation_matrix.write(found, output)
    if as_json:
        print_json(found)
        return
    console = rich_console.console()
    for part in evaluation_matrix.renderables(found):
        console.print(part)


def show(found: dict[str, Any], output: Path | None, as_json: bool) -> None:
    """Print a report, and write it where that is asked for."""
    if output is not None:
        evaluation_views.write(found, output)
    if as_json:
        print_json(found)
        return
    console = rich_console.console()
    for part in evaluation_views.renderables(found):
        console.print(part)


def _evaluated(deployment: Deployment, asked: _Asked) -> dict[str, Any]:
    """The report, once the run has ended."""
    with ExitStack() as started:
        deployment, store, folder = _opened(started, deployment, asked)
        given = evaluating.given_model(store, deployment.site().state_dir, asked.model, folder)
        return _report(started, deployment, store, asked, given)


def _matrix(deployment: Deployment, asked: _Asked, figure: str) -> dict[str, Any]:
    """The matrix, once the evaluation of each model has ended."""
    reports = {}
    with ExitStack() as started:
        deployment, store, folder = _opened(started, deployment, asked)
        found = evaluating.site_models(store, deployment.site().state_dir, asked.model, folder)
        for place, (client, given) in enumerate(found.models.items(), 1):
            label = client or evaluation_matrix.MERGED
            warn(f"Model {place} of {len(found.models)}: {label}")
            reports[label] = _report(started, deployment, store, asked, given)
    return evaluation_matrix.matrix(found.run, found.number, reports, figure)


def _opened(
    started: ExitStack, deployment: Deployment, asked: _Asked
) -> tuple[Deployment, Store, Path]:
    """The deployment of the config, its servers, and a folder for files."""
    folder = Path(started.enter_context(TemporaryDirectory(prefix="fl-queue-")))
    if asked.config is not None:
        loaded = loading.load(asked.config, asked.overrides)
        deployment = deployment.with_config(loaded)
        if loaded.is_simulation:
            interrupt_on_sigterm()
        launching.start_servers(started, deployment.site(), loaded, stays=True)
    return deployment, deployment.open(), folder


def _report(
    started: ExitStack,
    deployment: Deployment,
    store: Store,
    asked: _Asked,
    given: evaluating.GivenModel,
) -> dict[str, Any]:
    """The report of one model, once its run has ended."""
    config = _config(asked, given)
    name = evaluating.name_for(store, asked.name, given.name)
    return evaluation_report.read(*following.completed(started, deployment, name, config, "report"))


def _config(asked: _Asked, given: evaluating.GivenModel) -> RunConfig:
    """The config of the evaluation."""
    if asked.config is None and not given.tables:
        raise ConfigError("CONFIG", "is missing; name the config of the model's task and data")
    tables = loading.read_tables(asked.config, asked.overrides) if asked.config else given.tables
    on_line = loading.read_tables(None, asked.overrides, {})
    if not asked.config:
        tables = {**tables}
        for section, fields in on_line.items():
            tables[section] = {**tables.get(section, {}), **fields}
    return evaluating.config_of(tables, on_line, given.path, asked.rows)
