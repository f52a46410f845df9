"""``fl-queue config``."""

from __future__ import annotations

import click

from fl_queue.cli.completion import config_argument
from fl_queue.cli.groups import Group
from fl_queue.cli.options import json_option, set_option
from fl_queue.cli.output import print_json, print_line, print_text
from fl_queue.config import loading, metric_choice, rendering


@click.group("config", cls=Group)
def config_group() -> None:
    """Show configs: fields, defaults, digest."""


@config_group.command("show")
@config_argument(required=False)
@set_option()
@click.option("--defaults", is_flag=True, help="Every field with its meaning and default, as TOML.")
@click.option(
    "--digest",
    is_flag=True,
    help="The digest alone, for --pin-config of a site. It differs if any setting differs.",
)
@json_option
def config_show(
    config: str | None, overrides: tuple[str, ...], defaults: bool, digest: bool, as_json: bool
) -> None:
    """
    Show the config that a run would have.

    That is CONFIG (else the defaults), with the FLQ_ variables of the environment and --set. Passwords
    are masked.
    """
    if defaults:
        print_text(rendering.render_defaults())
        return
    loaded = loading.load(config, overrides)
    metric_choice.check_config(loaded)
    if digest:
        print_json({"digest": loaded.digest}) if as_json else print_line(loaded.digest)
    elif as_json:
        print_json(rendering.masked(loaded))
    else:
        print_text(rendering.to_toml(rendering.masked(loaded)))
