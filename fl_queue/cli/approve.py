"""``fl-queue approve``, for the site that owns the data. It needs no Redis."""

from __future__ import annotations

import time
from pathlib import Path

import click

from fl_queue.cli.options import json_option, state_option
from fl_queue.cli.output import print_json, print_line, print_result
from fl_queue.client import approval, disclosure
from fl_queue.errors import ConfigError


@click.command()
@click.argument("updates", metavar="[UPDATE]...", nargs=-1)
@click.option("--all", "every", is_flag=True, help="All updates that wait now.")
@click.option(
    "--reject", is_flag=True, help="UPDATE is not sent; its round goes on without this site."
)
@click.option("--reason", default="", help="With --reject: shown to the operator of the run.")
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
    At a site: show the updates that wait, or let UPDATE be sent.

    For clients whose worker runs with --approve. Without UPDATE, everything that each update contains
    is shown: every field of its header, and its tensors with their norms. A decision cannot be taken
    back. An approved update is sent within a few seconds, if its round is still open.
    """
    if (reject or reason) and not (updates or every):
        raise ConfigError("--reject" if reject else "--reason", "needs UPDATE, or --all")
    if reason and not reject:
        raise ConfigError("--reason", "needs --reject")
    if updates and every:
        raise ConfigError("--all", "cannot be used with UPDATE")
    chosen = approval.find(state_dir, updates) if updates else approval.waiting(state_dir)
    if not (updates or every):
        _show(chosen, as_json)
        return
    done, lines = [], []
    for item in chosen:
        approval.decide(item, not reject, reason)
        digest, what = item.header.body_digest, "stays here" if reject else "may leave"
        done.append({"update": item.name, "approved": not reject, "digest": digest})
        lines.append(f"{item.name} {what}: digest {digest[:16]}")
    print_result(as_json, done, lines)


def _show(chosen: list[approval.PendingUpdate], as_json: bool) -> None:
    described = [(item, disclosure.describe_update(item.header, item.body)) for item in chosen]
    if as_json:
        print_json(
            [{"update": item.name, "since": item.since, **facts} for item, facts in described]
        )
        return
    for item, facts in described:
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(item.since))
        print_line(f"{item.name}, waiting since {since}")
        for line in disclosure.format_update(facts):
            print_line(line)
    if not described:
        print_line("nothing waits for approval")
