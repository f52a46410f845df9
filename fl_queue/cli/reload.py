"""``fl-queue reload``, for the site that owns the data. It needs no Redis."""

from __future__ import annotations

from pathlib import Path

import click

from fl_queue.cli.options import json_option, state_option
from fl_queue.cli.output import print_result
from fl_queue.client import pausing
from fl_queue.client import reload as reloading


@click.command()
@click.argument("clients", metavar="[CLIENT]...", nargs=-1)
@json_option
@state_option
def reload(state_dir: Path, clients: tuple[str, ...], as_json: bool) -> None:
    """
    At a site: read the data and the task's code again.

    A client's training process keeps its data from one round to the next. It notices files that have
    changed by their names, sizes and times; this is for changes that it cannot see, such as those of a
    database or of the task's own code. A training that has begun is finished. Without CLIENT, all
    clients of this machine's state folder.
    """
    done, lines = [], []
    for client in pausing.select_clients(state_dir, clients):
        reloading.wish(state_dir, client)
        done.append({"client": client, "reload": True})
        lines.append(f"{client} reads its data again before its next job")
    print_result(as_json, done, lines)
