"""
The commands for whoever owns the data, at the site itself: ``approve``, ``pause``, ``unpause``.

They need no Redis.
"""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path

import click

from fl_queue.cli.options import json_option, say, state_option, write_json
from fl_queue.client import approval, disclosure, pausing
from fl_queue.errors import ConfigError

_CLIENTS = click.argument("clients", metavar="[CLIENT]...", nargs=-1)


@click.command()
@click.argument("updates", metavar="[UPDATE]...", nargs=-1)
@click.option("--all", "every", is_flag=True, help="All that wait now.")
@click.option("--reject", is_flag=True, help="UPDATE must not leave; its round goes on without it.")
@click.option("--reason", default="", help="Why not, told to those who wait for this site.")
@json_option
@state_option
def approve(
    state_dir: Path,
    updates: tuple[str, ...],
    every: bool,
    reject: bool,
    reason: str,
    as_json: bool,
) -> None:
    """
    At a site: show the updates that wait to leave it, or let UPDATE leave.

    For clients whose worker runs with --approve. Without UPDATE everything is shown that would leave
    with each: every field of its header, and its tensors with their norms. A decision holds for what was
    made, and cannot be taken back. Its worker sends an approved update within a few seconds, if the
    round has not ended meanwhile.
    """
    if (reject or reason) and not (updates or every):
        raise ConfigError("--reject" if reject else "--reason", "needs UPDATE, or --all")
    if reason and not reject:
        raise ConfigError("--reason", "goes with --reject")
    if updates and every:
        raise ConfigError("--all", "goes without UPDATE")
    chosen = approval.find(state_dir, updates) if updates else approval.waiting(state_dir)
    if not (updates or every):
        _show(chosen, as_json)
        return
    for item in chosen:
        approval.decide(item, not reject, reason)
        what = "stays here" if reject else "may leave"
        say(f"{item.name} {what}: digest {item.header.body_digest[:16]}")


def _show(chosen: list[approval.PendingUpdate], as_json: bool) -> None:
    told = [(item, disclosure.describe_update(item.header, item.body)) for item in chosen]
    if as_json:
        write_json([{"update": item.name, "since": item.since, **facts} for item, facts in told])
        return
    for item, facts in told:
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(item.since))
        say(f"{item.name}, waiting since {since}")
        for line in disclosure.format_update(facts):
            say(line)
    if not told:
        say("nothing waits for approval")


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
    for client in pausing.select_clients(state_dir, clients):
        is_news = pausing.pause(state_dir, client, reason, datetime.now().astimezone())
        say(f"{client} is {'' if is_news else 'already '}paused")


@click.command()
@_CLIENTS
@state_option
def unpause(state_dir: Path, clients: tuple[str, ...]) -> None:
    """
    At a site: let CLIENT take part again, from the next round on.

    Without CLIENT all of this machine's state folder. Quiet hours are options of the worker, and stay.
    """
    for client in pausing.select_clients(state_dir, clients):
        was = pausing.unpause(state_dir, client)
        say(f"{client} {'takes part again' if was else 'was not paused'}")
