"""``fl-queue partition``."""

from __future__ import annotations

from pathlib import Path

import click

from fl_queue.cli.completion import config_argument
from fl_queue.cli.options import json_option, output_option, set_option
from fl_queue.cli.output import print_json, warn
from fl_queue.config import loading
from fl_queue.experiments import partition_preview
from fl_queue.reporting import rich_console


@click.command("partition")
@config_argument(required=False)
@set_option()
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Data folder. Default: data.dir of the config.",
)
@click.option(
    "--clients",
    type=click.IntRange(min=1),
    default=None,
    help="Number of clients, if the config does not have it.",
)
@output_option("Also draw it, as PNG or SVG.", required=False)
@json_option
def partition_command(
    config: str | None,
    overrides: tuple[str, ...],
    data: Path | None,
    clients: int | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """
    Show each client's share of the data: examples, labels, skew.

    The shares are those of data.partition of CONFIG.
    """
    loaded = loading.load(config, overrides)
    found = partition_preview.preview_partition(
        loaded, str(data.absolute()) if data else "", clients or 0
    )
    if as_json:
        print_json(partition_preview.to_json(found))
    else:
        console = rich_console.console()
        # A narrow terminal wraps the lines; a narrower table would cut numbers off.
        console.width = max(console.width, 120)
        console.print(partition_preview.table(found))
    if output:
        title = f"{config or 'defaults'}: {found.partition}, {len(found.portions)} shares"
        partition_preview.plot(output, found, title)
        warn(str(output))
