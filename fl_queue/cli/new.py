"""
The command that writes something to begin with: ``new``.
"""

from __future__ import annotations

from pathlib import Path

import click

from fl_queue.cli import starter
from fl_queue.cli.options import say


@click.command("new")
@click.argument("name", metavar="NAME")
@click.option(
    "--into",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    help="Folder to make. Default: NAME, here.",
)
def new(name: str, into: Path | None) -> None:
    """
    Write a small task of your own that runs at once: code, config, test, README.

    A function that returns a model and its data, to be changed into yours. Nothing is overwritten.
    """
    folder = into or Path(name)
    for file in starter.write(name, folder):
        say(str(file))
    say(
        f"Next: cd {folder}; fl-queue try-task {name}.toml; fl-queue start-round {name}.toml",
        err=True,
    )
