"""``fl-queue start-round``."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict

import click

from fl_queue.cli.completion import config_argument
from fl_queue.cli.options import (
    Deployment,
    connection_options,
    interrupt_on_sigterm,
    json_option,
    set_option,
    signing_option,
)
from fl_queue.cli.output import print_json, print_line, warn
from fl_queue.cli.watch import follow_to_end
from fl_queue.config import loading
from fl_queue.coordinator.rounds import runs
from fl_queue.experiments import launching
from fl_queue.experiments.launching import LaunchedRun
from fl_queue.reporting import rich_console, run_status


@click.command("start-round")
@config_argument(metavar="CONFIG")
@click.option(
    "--run",
    "name",
    default="",
    metavar="NAME",
    help="Name of the run; a run that exists is continued. Default: the name of CONFIG.",
)
@click.option(
    "--rounds",
    "count",
    type=click.IntRange(min=1),
    help="Rounds of training. Default: run.rounds of the config.",
)
@click.option(
    "--from-version",
    metavar="VERSION",
    help="Go on from this older version (a number, a tag, or best) of a run that has ended.",
)
@click.option(
    "--wait/--no-wait",
    default=True,
    show_default=True,
    help="Show progress until the run ends.",
)
@set_option()
@json_option
@connection_options
@signing_option
def start_round(
    deployment: Deployment,
    config: str,
    name: str,
    count: int | None,
    from_version: str | None,
    wait: bool,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """
    Start a run, or continue it from its newest or an older version.

    CONFIG is a TOML file or a preset (demo, mnist-2nn, ...). The run goes on when
    this command ends. A simulation needs no servers or workers: those that are missing (Redis,
    aggregator, pool, evaluator) are started, and end with this command.

    With --from-version 3 a run at version 8 goes on with version 9, which is version 3 again: its
    history keeps both lines, and what clients had learned for themselves since then counts no more.
    """
    loaded = loading.load(config, overrides)
    deployment = deployment.with_config(loaded)
    name = name or launching.default_run_name(config)
    if loaded.is_simulation:
        interrupt_on_sigterm()
    with ExitStack() as started:
        begun = launching.launch(
            started,
            deployment.site(),
            name,
            loaded,
            count,
            stays=wait,
            console=rich_console.console(stderr=True),
            from_version=from_version,
        )
        if begun.store.control.enrolments.pins.key is not None:
            warn(f"Signed config {loaded.digest}")
        if wait:
            follow_to_end(
                deployment,
                begun.run,
                begun.since,
                outlives_command=not begun.is_alone,
                as_json=as_json,
            )
        else:
            _print_started(begun, name, as_json)


def _print_started(begun: LaunchedRun, name: str, as_json: bool) -> None:
    if as_json:
        state = runs.find_run(begun.store, begun.run)
        print_json(asdict(run_status.run_status(begun.store, state)))
    else:
        print_line(begun.run)
        warn(f"Started; watch it with `fl-queue watch {name}`.")
