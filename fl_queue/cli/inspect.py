"""``fl-queue inspect``."""

from __future__ import annotations

import click

from fl_queue.cli.completion import run_argument
from fl_queue.cli.options import Deployment, connection_options, json_option
from fl_queue.cli.output import print_json, print_line
from fl_queue.coordinator.rounds import runs
from fl_queue.reporting import run_status


@click.command()
@run_argument()
@click.argument("number", metavar="ROUND", type=click.IntRange(min=0))
@click.argument("client")
@json_option
@connection_options
def inspect(deployment: Deployment, run: str, number: int, client: str, as_json: bool) -> None:
    """
    Show the receipt of CLIENT's update in a round of RUN.

    Receipts are kept for two rounds. They have the time the update was received, whether it was
    accepted, and the reason if it was not.
    """
    store = deployment.open_control()
    found = run_status.receipts(store, runs.find_run(store, run), number, client)
    if as_json:
        print_json(found)
        return
    for key, receipt in found.items():
        print_line(key)
        for field, value in receipt.items():
            if value not in ("", {}, 0, 0.0, None):
                print_line(f"  {field}: {value}")
