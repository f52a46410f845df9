"""``fl-queue events``."""

from __future__ import annotations

import time
from typing import Any

import click

from fl_queue.cli.completion import run_argument
from fl_queue.cli.options import Deployment, connection_options, follow_option, json_option
from fl_queue.cli.output import print_line, warn
from fl_queue.common import escaping, outages
from fl_queue.common.safe_json import dumps
from fl_queue.coordinator.rounds import runs
from fl_queue.reporting import event_lines, run_status
from fl_queue.store import keyspace


@click.command()
@run_argument()
@follow_option("Go on as events happen, until Ctrl-C.")
@json_option
@connection_options
def events(deployment: Deployment, run: str, follow: bool, as_json: bool) -> None:
    """
    Show the events of RUN, oldest first.

    With --json, one JSON object on each line.
    """
    store = deployment.open_control()
    stream = keyspace.events(runs.find_run(store, run).run_id)
    cursor = "0-0"

    def read() -> list[tuple[str, dict[str, Any]]]:
        found = store.control.events.read({stream: cursor}, 1000 if follow else None)
        return [(entry, event) for _, entry, event in found]

    while True:
        for entry, event in outages.ride_out(read, warn) if follow else read():
            cursor = entry
            _print_event(entry, event, as_json)
        if not follow:
            return


def _print_event(entry: str, event: dict[str, Any], as_json: bool) -> None:
    record = run_status.event_record(entry, event)
    if as_json:
        print_line(escaping.json_text(dumps(record)))
        return
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record["at"]))
    print_line(f"{stamp} {event_lines.describe(event) or event['event'].replace('_', ' ')}")
