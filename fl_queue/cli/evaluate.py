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
from fl_queue.cli.output import print_json
from fl_queue.config import loading
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import ConfigError
from fl_queue.experiments import evaluating, launching
from fl_queue.reporting import evaluation_report, evaluation_views, rich_console


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
@set_option()
@output_option(
    "Write the report, too: .json, .csv, .md, .html, or the curves as .png or .svg.", required=False
)
@json_option
@connection_options
@signing_option
def evaluate(
    deployment: Deployment,
    model: str,
    config: str | None,
    name: str,
    held_out: bool,
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
    """
    evaluation_views.check_suffix(output)
    asked = _Asked(model, config, name, "held_out" if held_out else "all", overrides)
    show(_evaluated(deployment, asked), output, as_json)


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
    if asked.config is not None:
        loaded = loading.load(asked.config, asked.overrides)
        deployment = deployment.with_config(loaded)
        if loaded.is_simulation:
            interrupt_on_sigterm()
    with ExitStack() as started:
        folder = Path(started.enter_context(TemporaryDirectory(prefix="fl-queue-")))
        if asked.config is not None:
            launching.start_servers(started, deployment.site(), loaded, stays=True)
        store = deployment.open()
        given = evaluating.given_model(store, deployment.site().state_dir, asked.model, folder)
        config = _config(asked, given)
        name = evaluating.name_for(store, asked.name, given.name)
        return evaluation_report.read(
            *following.completed(started, deployment, name, config, "report")
        )


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
