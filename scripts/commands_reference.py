"""The tables of commands in ``docs/reference/cli.md``, made from the commands' own help."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import click

from fl_queue.cli import SECTIONS, cli
from scripts import markers

BEGIN, END = "<!-- commands: made by `make docs` -->\n", "<!-- end of commands -->\n"


def render() -> str:
    """Render a table for each heading of ``fl-queue --help``."""
    return "\n".join(_table(heading, names) for heading, names in SECTIONS.items())


def replaced(page: str) -> str:
    """Put the tables of today between the two markers of a page."""
    return markers.replaced(page, BEGIN, END, f"\n{render()}\n")


def _table(heading: str, names: Mapping[str, str]) -> str:
    rows = [row for name in names for row in _rows(name)]
    return "\n".join([f"**{heading}**", "", "| command | what it does |", "|---|---|", *rows, ""])


def _rows(name: str) -> Iterator[str]:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    found = {name: command}
    if isinstance(command, click.Group):
        found = {f"{name} {sub}": member for sub, member in command.commands.items()}
    for path, member in found.items():
        arguments = [
            _metavar(param) for param in member.params if isinstance(param, click.Argument)
        ]
        usage = " ".join([f"fl-queue {path}", *arguments])
        yield f"| `{usage}` | {member.get_short_help_str(limit=200)} |"


def _metavar(parameter: click.Argument) -> str:
    name = parameter.metavar or (parameter.name or "").upper()
    return name if parameter.required or name.startswith("[") else f"[{name}]"
