"""``fl-queue clients``."""

from __future__ import annotations

from dataclasses import asdict

import click

from fl_queue.cli.options import Deployment, connection_options, json_option
from fl_queue.cli.output import print_json
from fl_queue.reporting import rich_console, run_status


@click.command()
@json_option
@connection_options
def clients(deployment: Deployment, as_json: bool) -> None:
    """
    List all clients: alive, examples, host, last event.

    A client is listed once a worker of it has connected, or when it was enrolled.
    """
    store = deployment.open_control()
    found = run_status.clients(store)
    if as_json:
        print_json([asdict(entry) for entry in found])
        return
    table = rich_console.table(
        "Client", "Alive", "Enrolled", "Last seen", "Examples", "Host", "Pid", "Last event"
    )
    for entry in found:
        seen = "never" if entry.last_seen_s is None else f"{max(0.0, entry.last_seen_s):.0f} s ago"
        table.add_row(
            entry.client,
            "yes" if entry.alive else "no",
            entry.enrolled,
            seen,
            str(entry.num_examples or "-"),
            entry.host or "-",
            entry.pid or "-",
            entry.doing,
        )
    rich_console.console().print(table)
