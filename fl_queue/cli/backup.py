"""
The commands that carry a whole run from one Redis to another: ``backup`` and ``restore``.
"""

from __future__ import annotations

from pathlib import Path

import click

from fl_queue.cli.completion import run_argument
from fl_queue.cli.options import Where, connection_options, output_option, say, signing_option
from fl_queue.coordinator.operations import backup as backups
from fl_queue.coordinator.rounds import runs
from fl_queue.store import UPLOADS


@click.command()
@run_argument()
@output_option("Zip file; an existing one is replaced.")
@connection_options
def backup(where: Where, run: str, output: Path) -> None:
    """
    Write RUN whole to one file: config, history, newest and best model.

    RUN may be training; a round that is open is not in the file, and is tried again after a
    restore. The file has no passwords, URLs or data of clients. Run this on the aggregator's
    machine, where the checkpoints are, and see `fl-queue restore --help`.
    """
    made = backups.write(where.open(), run, output, where.state_dir)
    best = "" if made.best is None else f", best {made.best}"
    say(
        f"{made.path}: run {made.run}, version {made.version}{best}, {made.rounds} rounds, {made.nbytes / 1e6:.1f} MB"
    )
    if made.left_out:
        say(f"Warning: without the best version: {made.left_out}", err=True)


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--run",
    "name",
    help="Name of the new run. Default: the name it had. Under another one training draws other randomness.",
)
@click.option(
    "--unsigned",
    is_flag=True,
    help="Take FILE although the operator's key of this machine has not signed its config and newest version.",
)
@connection_options
@signing_option
def restore(where: Where, file: Path, name: str | None, unsigned: bool) -> None:
    """
    Make a run from FILE, which `fl-queue backup` wrote, on a Redis that has none of that name.

    It has a new run id, and nothing is trained yet: go on with `fl-queue resume NAME`, or
    `fl-queue start-round CONFIG --run NAME`. Under the same name and with the same clients, the
    rounds to come make the same versions, bit for bit, as without the restore. Run this on the
    aggregator's machine, which keeps the checkpoints.
    """
    store = where.open(UPLOADS)
    state = backups.restore(store, file, where.state_dir, name, unsigned)
    say(f"{state.name} ({state.run_id}) {runs.describe_state(store, state)}")
