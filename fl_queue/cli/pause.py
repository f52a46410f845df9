"""``fl-queue pause`` and ``fl-queue unpause``, for the site that owns the data. They need no Redis."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import click

from fl_queue.cli.options import json_option, state_option
from fl_queue.cli.output import print_result
from fl_queue.client import pausing

_clients_argument = click.argument("clients", metavar="[CLIENT]...", nargs=-1)


@click.command()
@_clients_argument
@click.option("--reason", default="", help="Shown to the operator of the runs.")
@json_option
@state_option
def pause(state_dir: Path, clients: tuple[str, ...], reason: str, as_json: bool) -> None:
    """
    At a site: stop taking part, until `fl-queue unpause`.

    Without CLIENT, all clients of this machine's state folder are paused. A training that has begun is
    finished, and its update is sent. New rounds do not select the client; an open round does not wait
    for it. The pause outlasts restarts of the worker and of the machine.
    """
    done, lines = [], []
    for client in pausing.select_clients(state_dir, clients):
        is_new = pausing.pause(state_dir, client, reason, datetime.now().astimezone())
        done.append({"client": client, "paused": True, "changed": is_new})
        lines.append(f"{client} is {'' if is_new else 'already '}paused")
    print_result(as_json, done, lines)


@click.command()
@_clients_argument
@json_option
@state_option
def unpause(state_dir: Path, clients: tuple[str, ...], as_json: bool) -> None:
    """
    At a site: take part again, from the next round on.

    Without CLIENT, all clients of this machine's state folder. The --quiet-hours of a worker stay.
    """
    done, lines = [], []
    for client in pausing.select_clients(state_dir, clients):
        was_paused = pausing.unpause(state_dir, client)
        done.append({"client": client, "paused": False, "changed": was_paused})
        lines.append(f"{client} {'takes part again' if was_paused else 'was not paused'}")
    print_result(as_json, done, lines)
