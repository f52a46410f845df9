"""
The command that looks at data: what a partition gives to each client.
"""

from __future__ import annotations

from pathlib import Path

import click

from fl_queue.cli.completion import config_argument
from fl_queue.cli.options import json_option, output_option, say, set_option, write_json
from fl_queue.config import run_config as configs
from fl_queue.experiments import partition_preview
from fl_queue.reporting import rich_console


@click.command("partition")
@config_argument(required=False)
@set_option()
@click.option(
    "--data", type=click.Path(file_okay=False, path_type=Path), help="Data folder; over data.dir."
)
@click.option(
    "--clients",
    type=click.IntRange(min=1),
    default=None,
    help="How many clients there will be, where the config does not say.",
)
@output_option("Also draw it (PNG, SVG).", required=False)
@json_option
def partition_command(
    config: str | None,
    overrides: tuple[str, ...],
    data: Path | None,
    clients: int | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Show what data.partition of CONFIG gives to each client: examples, labels, skew."""
    loaded = configs.load(config, overrides)
    found = partition_preview.preview_partition(
        loaded, str(data.absolute()) if data else "", clients or 0
    )
    if as_json:
        write_json(partition_preview.to_json(found))
    else:
        console = rich_console.console()
        # Numbers that are cut off say nothing; a narrow terminal wraps them.
        console.width = max(console.width, 120)
        console.print(partition_preview.table(found))
    if output:
        title = f"{config or 'defaults'}: {found.partition}, {len(found.portions)} shares"
        partition_preview.plot(output, found, title)
        say(str(output), err=True)
