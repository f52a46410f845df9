"""
The commands for whoever owns the data, at the site itself: ``pause``, ``unpause``. They need no Redis.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import click

from fl_queue import pauses
from fl_queue.cli.common import state_option

_CLIENTS = click.argument("clients", metavar="[CLIENT]...", nargs=-1)


@click.command()
@_CLIENTS
@click.option("--reason", default="", help="Told to those who wait for this site.")
@state_option
def pause(state_dir: Path, clients: tuple[str, ...], reason: str) -> None:
    """
    At a site: let CLIENT take no new work, until `fl-queue unpause`.

    Without CLIENT all of this machine's state folder. A training that has begun is finished, and its
    update is sent. No round selects the client meanwhile; one that has already need not wait for it.
    It outlasts restarts of the worker and the machine.
    """
    for client in pauses.chosen(state_dir, clients):
        is_news = pauses.pause(state_dir, client, reason, datetime.now().astimezone())
        click.echo(f"{client} is {'' if is_news else 'already '}paused")


@click.command()
@_CLIENTS
@state_option
def unpause(state_dir: Path, clients: tuple[str, ...]) -> None:
    """
    At a site: let CLIENT take part again, from the next round on.

    Without CLIENT all of this machine's state folder. Quiet hours are options of the worker, and stay.
    """
    for client in pauses.chosen(state_dir, clients):
        was = pauses.unpause(state_dir, client)
        click.echo(f"{client} {'takes part again' if was else 'was not paused'}")
