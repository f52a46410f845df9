"""``fl-queue demo``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from fl_queue.cli.options import interrupt_on_sigterm, json_option, output_option, set_option
from fl_queue.cli.output import print_result
from fl_queue.cli.redis import redis_cli_command
from fl_queue.experiments import demo as demos


@click.command("demo")
@click.option(
    "--clients", default=4, show_default=True, type=click.IntRange(1, 64), help="Client workers."
)
@click.option(
    "--rounds",
    "count",
    default=5,
    show_default=True,
    type=click.IntRange(min=1),
    help="Rounds of training.",
)
@output_option(
    "Folder for the model, the plot and the logs.",
    required=False,
    is_folder=True,
    default=Path("fl-queue-demo"),
)
@set_option("Override a field of config/demo.toml; may be repeated.")
@click.option(
    "--secure",
    is_flag=True,
    help="Mask the updates: each site has a key of its own, and the aggregator learns their sum alone.",
)
@json_option
def demo(
    clients: int,
    count: int,
    output: Path,
    overrides: tuple[str, ...],
    secure: bool,
    as_json: bool,
) -> None:
    """
    Train a model with four clients on this machine.

    It starts private Redis servers and all workers, trains on real MNIST digits, writes the model and
    a plot, and stops everything again.
    """
    interrupt_on_sigterm()
    if secure:
        overrides = (*demos.SECURE, *overrides)
    done = demos.run(clients, count, output, overrides, redis_cli_command, show_table=not as_json)
    plot = f"plot:  {done.plot}" if done.plot else f"no plot: {done.no_plot}"
    print_result(as_json, asdict(done), [f"model: {done.model}", plot])
