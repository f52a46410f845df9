"""``fl-queue baseline``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from fl_queue.cli.compare import wide_console
from fl_queue.cli.completion import config_argument
from fl_queue.cli.options import (
    collect,
    data_folder,
    device_option,
    json_option,
    output_option,
    set_option,
    threads_option,
)
from fl_queue.cli.output import print_json, print_line, warn
from fl_queue.common import collector
from fl_queue.config import loading
from fl_queue.experiments import launching
from fl_queue.reporting import baselines, event_lines


@dataclass(frozen=True)
class _Machine:
    """Data and hardware of the training."""

    data: tuple[str, ...]
    test_data: str
    device: str
    threads: int


@click.command()
@config_argument(metavar="CONFIG")
@click.option(
    "--kind",
    required=True,
    type=click.Choice(baselines.KINDS),
    help="local: one model for each client; centralised: one model on the data of all.",
)
@output_option("JSON file, for --baseline of compare and plot.", required=False)
@click.option(
    "--clients",
    default=0,
    type=click.IntRange(min=0),
    help="Train with this many of the clients, drawn by run.seed. Default: all.",
)
@collect(
    "machine",
    _Machine,
    click.option(
        "--data",
        multiple=True,
        metavar="FOLDER",
        help="Data folder. Default: data.dir of the config. With data.partition = site, one for each "
        "client, named after it.",
    ),
    click.option(
        "--test-data",
        default="",
        metavar="FOLDER",
        help="Folder of the test data. Default: the first --data.",
    ),
    device_option,
    threads_option,
)
@set_option()
@json_option
def baseline(
    config: str,
    kind: str,
    output: Path | None,
    clients: int,
    machine: _Machine,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """
    Train CONFIG without federation, to compare runs with.

    Each client alone, or one model on all data. It is trained in this process, without Redis, with the
    task, shares, initial model, seed and optimiser of the run: run.rounds times train.epochs passes over
    the data. Each model is tested on the central test set, or with run.evaluate_every = 0 on held-out
    data. A task of your own is imported from the current folder.
    """
    loaded = loading.load(config, overrides)
    folders = tuple(data_folder(folder) for folder in machine.data)
    test = data_folder(machine.test_data)
    with collector.paused():
        from fl_queue.experiments import baseline_training  # torch

    def show_round(
        index: int, count: int, client: str, number: int, found: Mapping[str, float]
    ) -> None:
        if found or number == loaded.run.rounds:
            words = event_lines.describe_metrics(found) or "trained"
            warn(f"{index + 1} of {count}: {client}, round {number}: {words}")

    made = baseline_training.train(
        loaded,
        kind,
        launching.default_run_name(config),
        clients=clients,
        place=baseline_training.BaselineMachine(folders, test, machine.device, machine.threads),
        on_round=show_round,
    )
    if output is not None:
        baselines.write(output, made)
    if as_json:
        print_json(asdict(made))
    else:
        wide_console().print(baselines.table(made))
        for line in baselines.summary(made):
            print_line(line)
