"""``fl-queue policy`` and ``fl-queue ledger``, for the site that owns the data. They need no Redis."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path

import click

from fl_queue.cli.groups import Group
from fl_queue.cli.options import json_option, state_option
from fl_queue.cli.output import print_json, print_line, print_result
from fl_queue.client import policy as policies
from fl_queue.client.ledger import Ledger
from fl_queue.common.toml_text import value_text
from fl_queue.errors import ConfigError

_DAY = re.compile(r"\d{4}-\d\d-\d\d")


@click.group(cls=Group)
def policy() -> None:
    """
    At a site: check or show the rules for its tables.

    They are a file for `fl-queue worker client --policy FILE`.
    """


@policy.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@json_option
def check(file: Path, as_json: bool) -> None:
    """Check the policy in FILE."""
    found = policies.read(str(file))
    lines = [f"{file}: digest {found.digest}"]
    print_result(as_json, {"digest": found.digest, "rules": found.to_dict()}, lines)


@policy.command()
@click.argument("file", required=False, type=click.Path(dir_okay=False, path_type=Path))
@json_option
def show(file: Path | None, as_json: bool) -> None:
    """Show all rules, as FILE has them, or as they are without a file."""
    found = policies.read(str(file) if file else "")
    lines = []
    for name, value in found.to_dict().items():
        lines += [f"# {policies.RULES[name].doc}", f"{name} = {value_text(value)}"]
    print_result(as_json, {"digest": found.digest, "rules": found.to_dict()}, lines)


@click.command()
@click.option("--since", default="", metavar="DAY", help="Only from this day on, YYYY-MM-DD (UTC).")
@json_option
@state_option
def ledger(state_dir: Path, since: str, as_json: bool) -> None:
    """At a site: show which questions about its tables were answered."""
    if since and not _DAY.fullmatch(since):
        raise ConfigError("--since", f"{since!r} is no day; write it as 2026-01-31")
    found = list(Ledger(state_dir).entries(since))
    if as_json:
        print_json([asdict(entry) for entry in found])
        return
    for entry in found:
        print_line(
            f"{entry.at}  {entry.client}  run {entry.run}, round {entry.round}: {entry.rows:,} rows of "
            f"{Path(entry.file).name}, {entry.numbers:,} numbers; {'; '.join(entry.questions)}"
        )
