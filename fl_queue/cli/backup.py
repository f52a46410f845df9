"""``fl-queue backup`` and ``fl-queue restore``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from fl_queue.cli.completion import run_argument
from fl_queue.cli.options import (
    Deployment,
    connection_options,
    json_option,
    output_option,
    signing_option,
)
from fl_queue.cli.output import print_json, print_line, print_result, warn
from fl_queue.coordinator.operations import backup as backups
from fl_queue.coordinator.rounds import runs
from fl_queue.reporting import run_status
from fl_queue.store import UPLOADS


@click.command()
@run_argument()
@output_option("Zip file; an existing one is replaced.")
@json_option
@connection_options
def backup(deployment: Deployment, run: str, output: Path, as_json: bool) -> None:
    """
    Write RUN to a file: config, history, newest and best model.

    RUN may be training; its open round is not in the file, and is repeated after a restore. The file
    has no passwords, URLs or data of clients. Run this on the aggregator's machine, which has the
    checkpoints. See `fl-queue restore --help`.
    """
    made = backups.write(deployment.open(), run, output, deployment.state_dir)
    best = "" if made.best is None else f", best {made.best}"
    line = (
        f"{made.path}: run {made.run}, version {made.version}{best}, {made.rounds} rounds, "
        f"{made.nbytes / 1e6:.1f} MB"
    )
    print_result(as_json, asdict(made), [line])
    if made.left_out:
        warn(f"Warning: without the best version: {made.left_out}")


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--run",
    "name",
    help="Name of the new run. Default: its old name. Under another name training draws other random numbers.",
)
@click.option(
    "--unsigned",
    is_flag=True,
    help="Accept FILE without a signature by the operator's key of this machine.",
)
@json_option
@connection_options
@signing_option
def restore(
    deployment: Deployment, file: Path, name: str | None, unsigned: bool, as_json: bool
) -> None:
    """
    Create a run from a file of `fl-queue backup`.

    Redis must not have a run of that name. The run has a new run id, and does not train yet: continue
    it with `fl-queue resume NAME`, or `fl-queue start-round CONFIG --run NAME`. With the same name and
    clients, the next rounds make the same versions, bit for bit, as without the restore. Run this on
    the aggregator's machine, which keeps the checkpoints.
    """
    store = deployment.open(UPLOADS)
    state = backups.restore(store, file, deployment.state_dir, name, unsigned)
    if as_json:
        print_json(asdict(run_status.run_status(store, state)))
    else:
        print_line(f"{state.name} ({state.run_id}) {runs.describe_state(store, state)}")
