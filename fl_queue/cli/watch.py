"""``fl-queue watch``, and the progress display that ``start-round`` shares with it."""

from __future__ import annotations

from dataclasses import asdict

import click

from fl_queue.cli.completion import run_argument
from fl_queue.cli.options import Deployment, connection_options, json_option
from fl_queue.cli.output import print_json, warn
from fl_queue.common import outages
from fl_queue.coordinator.rounds import runs
from fl_queue.reporting import progress, rich_console, run_status
from fl_queue.store import RunState


@click.command()
@run_argument()
@json_option
@connection_options
def watch(deployment: Deployment, run: str, as_json: bool) -> None:
    """
    Show the progress of RUN until it ends.

    Then its rounds are printed as a table; with --json, its status. Exits with 4 if RUN failed or was
    cancelled. Ctrl-C ends this command, not RUN.
    """
    run_id = runs.find_run(deployment.open_control(), run).run_id
    follow_to_end(deployment, run_id, as_json=as_json)


def follow_to_end(
    deployment: Deployment,
    run: str,
    since: str = "",
    *,
    outlives_command: bool = True,
    as_json: bool = False,
) -> None:
    """
    Show the progress of a run until it ends, then its table or its status.

    Args:
        since: Id of the last event that is not shown.
        outlives_command: Whether the run goes on when this command is interrupted.

    Raises:
        RunFailed: It failed, or was cancelled.
    """
    store = deployment.open_control()
    name = runs.find_run(store, run).name
    try:
        progress.follow(store, run, rich_console.console(stderr=True), since=since)
    except KeyboardInterrupt:
        goes_on = f"goes on; watch it with `fl-queue watch {name}`"
        stops = "has stopped; the same command continues it"
        warn("")
        warn(f"Run {name} {goes_on if outlives_command else stops}.")
        raise

    def conclude() -> RunState:
        progress.await_evaluations(store, run, rich_console.console(stderr=True))
        state = runs.find_run(store, run)
        if as_json:
            print_json(asdict(run_status.run_status(store, state)))
        else:
            progress.print_table(store, run)
        return state

    # An outage at the end must not lose the table.
    ended = outages.ride_out(conclude, warn)
    runs.raise_unless_completed(ended)
    if runs.current_config(store, run).analysis is not None:
        warn(f"See its result with `fl-queue result {name}`.")
