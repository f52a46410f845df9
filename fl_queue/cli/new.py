"""``fl-queue new``."""

from __future__ import annotations

from pathlib import Path

import click

from fl_queue.cli import starter
from fl_queue.cli.options import json_option
from fl_queue.cli.output import print_result, warn


@click.command("new")
@click.argument("name", metavar="NAME")
@click.option(
    "--into",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    help="Folder to create. Default: NAME, in the current folder.",
)
@json_option
def new(name: str, into: Path | None, as_json: bool) -> None:
    """
    Write a small task of your own: code, config, test, README.

    The task is a function that returns a model and its data. It runs as it is; change it into yours.
    No existing file is overwritten.
    """
    folder = into or Path(name)
    written = [str(file) for file in starter.write(name, folder)]
    print_result(as_json, {"files": written}, written)
    warn(f"Next: cd {folder}; fl-queue try-task {name}.toml; fl-queue start-round {name}.toml")
