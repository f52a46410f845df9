"""
The commands of an experiment: ``sweep`` trains a config several times.
"""

from __future__ import annotations

from contextlib import ExitStack

import click
from rich.console import Console

from fl_queue import compare, launching, runs, sweeping
from fl_queue.cli.common import Where, connection_options, json_option, set_option
from fl_queue.cli.comparing import show_comparison
from fl_queue.cli.completing import config_argument
from fl_queue.cli.running import interrupt_on_sigterm, where_of_run
from fl_queue.errors import RunFailed
from fl_queue.site import Site


@click.command()
@config_argument(metavar="CONFIG")
@click.option(
    "--seeds",
    default=5,
    show_default=True,
    type=click.IntRange(min=1),
    help="So many, from run.seed on: run.seed, run.seed + 1, ...",
)
@click.option(
    "--set-each",
    "each",
    multiple=True,
    metavar="SECTION.KEY=A,B",
    help="Also with each of these values; repeated: with each combination.",
)
@click.option(
    "--run",
    "name",
    default="",
    metavar="NAME",
    help="What the runs are called. Default: as CONFIG.",
)
@click.option("--metric", default="accuracy", show_default=True, help="As for compare.")
@set_option()
@json_option
@connection_options
def sweep(
    where: Where,
    config: str,
    seeds: int,
    each: tuple[str, ...],
    name: str,
    metric: str,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """
    Train CONFIG with several seeds, one run after the other; mean and spread.

    The runs are called NAME-s0, NAME-s1, ... by their seeds, and NAME-learning-rate-0-1-s0 with
    --set-each. Workers are those that are there; a simulation needs none. The same command goes on
    with a sweep that was cut off: what is completed stays, what failed or was cancelled is resumed.
    At the end the runs are shown as `compare` shows them. A run that fails is said, the others go
    on, and the exit code is 4.
    """
    wanted = sweeping.members(config, name or launching.name_of(config), seeds, each, overrides)
    where = where_of_run(where, wanted[0].config)
    interrupt_on_sigterm()

    def tell(index: int, member: sweeping.Member, what: str) -> None:
        settings = " ".join(member.settings)
        click.echo(f"{index + 1} of {len(wanted)}: {member.name} {what} ({settings})", err=True)

    with ExitStack() as ours:
        site = Site(where.url, where.blob_url, where.state_dir)
        try:
            store, failed = sweeping.sweep(ours, site, wanted, Console(stderr=True), tell)
        except KeyboardInterrupt:
            click.echo("\nThe same command goes on with this sweep.", err=True)
            raise
        states = [runs.find_run(store, member.name) for member in wanted]
        show_comparison(compare.compare(store, states, metric), metric, as_json, failed=failed)
    if failed:
        done = f"{len(wanted) - len(failed)} of {len(wanted)} runs of the sweep are completed"
        raise RunFailed(", ".join(failed), f"failed; {done}; the same command tries again")
