"""``fl-queue history``."""

from __future__ import annotations

import click

from fl_queue.cli.completion import run_argument
from fl_queue.cli.options import Deployment, connection_options, json_option
from fl_queue.cli.output import print_json, print_text
from fl_queue.coordinator.rounds import runs
from fl_queue.errors import ConfigError
from fl_queue.reporting import rich_console, rounds_table, run_status


@click.command()
@run_argument()
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@json_option
@connection_options
def history(deployment: Deployment, run: str, as_csv: bool, as_json: bool) -> None:
    """
    Show the rounds of RUN as a table.

    With --json, its rows and the full record of each round.
    """
    if as_csv and as_json:
        raise ConfigError("--csv", "cannot be used with --json")
    store = deployment.open_control()
    run_id = runs.find_run(store, run).run_id
    if as_json:
        print_json(run_status.history(store, run_id))
        return
    rows = rounds_table.rounds_of(store, run_id)
    if as_csv:
        print_text(rounds_table.to_csv(rows))
    else:
        rich_console.console().print(
            rounds_table.table(rows, runs.current_config(store, run_id).analysis is None)
        )
