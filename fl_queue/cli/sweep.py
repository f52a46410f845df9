"""``fl-queue sweep``."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

import click

from fl_queue.cli.compare import metric_option, show_comparison
from fl_queue.cli.completion import config_argument
from fl_queue.cli.options import (
    Deployment,
    collect,
    connection_options,
    interrupt_on_sigterm,
    json_option,
    set_option,
    signing_option,
)
from fl_queue.cli.output import warn
from fl_queue.config import metric_choice
from fl_queue.coordinator.rounds import runs
from fl_queue.errors import RunFailed
from fl_queue.experiments import launching, sweeps
from fl_queue.reporting import comparison, rich_console


@dataclass(frozen=True)
class _Choice:
    """Which runs a sweep has."""

    seeds: int
    each: tuple[str, ...]
    name: str
    overrides: tuple[str, ...]


@click.command()
@config_argument(metavar="CONFIG")
@collect(
    "choice",
    _Choice,
    click.option(
        "--seeds",
        default=5,
        show_default=True,
        type=click.IntRange(min=1),
        help="Number of seeds: run.seed, run.seed + 1, ...",
    ),
    click.option(
        "--set-each",
        "each",
        multiple=True,
        metavar="SECTION.KEY=A,B",
        help="Train with each of these values; if repeated, with each combination.",
    ),
    click.option(
        "--run",
        "name",
        default="",
        metavar="NAME",
        help="First part of the runs' names. Default: the name of CONFIG.",
    ),
    set_option(),
)
@metric_option
@json_option
@connection_options
@signing_option
def sweep(deployment: Deployment, config: str, choice: _Choice, metric: str, as_json: bool) -> None:
    """
    Train CONFIG with several seeds and values, run by run.

    The runs are called NAME-s0, NAME-s1, ... after their seeds, and NAME-learning-rate-0-1-s0 with
    --set-each. They use the workers that there are; a simulation needs none. At the end the runs are
    shown as by `compare`. Repeating the command continues an interrupted sweep: completed runs stay,
    failed and cancelled ones are resumed. If a run fails, the rest are trained, and the exit code is 4.
    """
    name = choice.name or launching.default_run_name(config)
    wanted = sweeps.members(config, name, choice.seeds, choice.each, choice.overrides)
    known = metric_choice.of_config(wanted[0].config)
    if metric and known is not None:
        comparison.check_metric(metric, sorted(known))
    deployment = deployment.with_config(wanted[0].config)
    interrupt_on_sigterm()

    def show_run(index: int, member: sweeps.SweepRun, what: str) -> None:
        settings = " ".join(member.settings)
        warn(f"{index + 1} of {len(wanted)}: {member.name} {what} ({settings})")

    with ExitStack() as started:
        try:
            store, failed = sweeps.sweep(
                started,
                deployment.site(),
                wanted,
                rich_console.console(stderr=True),
                show_run,
            )
        except KeyboardInterrupt:
            warn("")
            warn("The same command continues this sweep.")
            raise
        states = [runs.find_run(store, member.name) for member in wanted]
        # An unknown --metric is no error here: the trained runs are shown.
        metric = metric or comparison.metric_of(store, states, "")
        show_comparison(comparison.compare(store, states, metric), metric, as_json, failed=failed)
    if failed:
        done = f"{len(wanted) - len(failed)} of {len(wanted)} runs of the sweep are completed"
        raise RunFailed(", ".join(failed), f"failed; {done}; the same command tries again")
