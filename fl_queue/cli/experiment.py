"""
The commands of an experiment: ``sweep`` trains a config several times, ``baseline`` without a federation.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import click

from fl_queue.cli.compare import show_comparison, wide_console
from fl_queue.cli.completion import config_argument
from fl_queue.cli.options import (
    Where,
    connection_options,
    data_folder,
    device_options,
    json_option,
    output_option,
    say,
    set_option,
    signing_option,
    write_json,
)
from fl_queue.cli.start import interrupt_on_sigterm, where_of_run
from fl_queue.config import metric_choice
from fl_queue.config import run_config as configs
from fl_queue.coordinator.rounds import runs
from fl_queue.errors import RunFailed
from fl_queue.experiments import launching, sweeps
from fl_queue.reporting import baselines as baselines
from fl_queue.reporting import comparison, progress, rich_console


@click.command()
@config_argument(metavar="CONFIG")
@click.option(
    "--seeds",
    default=5,
    show_default=True,
    type=click.IntRange(min=1),
    help="So many, from run.seed on: run.seed, run.seed + 1, ...",
)
@click.option(
    "--set-each",
    "each",
    multiple=True,
    metavar="SECTION.KEY=A,B",
    help="Also with each of these values; repeated: with each combination.",
)
@click.option(
    "--run",
    "name",
    default="",
    metavar="NAME",
    help="What the runs are called. Default: as CONFIG.",
)
@click.option("--metric", default="", help="As for compare.")
@set_option()
@json_option
@connection_options
@signing_option
def sweep(
    where: Where,
    config: str,
    seeds: int,
    each: tuple[str, ...],
    name: str,
    metric: str,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """
    Train CONFIG with several seeds, one run after the other; mean and spread.

    The runs are called NAME-s0, NAME-s1, ... by their seeds, and NAME-learning-rate-0-1-s0 with
    --set-each. Workers are those that are there; a simulation needs none. The same command goes on
    with a sweep that was cut off: what is completed stays, what failed or was cancelled is resumed.
    At the end the runs are shown as `compare` shows them. A run that fails is said, the others go
    on, and the exit code is 4.
    """
    wanted = sweeps.members(
        config, name or launching.default_run_name(config), seeds, each, overrides
    )
    known = metric_choice.of_config(wanted[0].config)
    if metric and known is not None:
        comparison.check_metric(metric, sorted(known))
    where = where_of_run(where, wanted[0].config)
    interrupt_on_sigterm()

    def tell(index: int, member: sweeps.SweepRun, what: str) -> None:
        settings = " ".join(member.settings)
        say(f"{index + 1} of {len(wanted)}: {member.name} {what} ({settings})", err=True)

    with ExitStack() as ours:
        site = where.site()
        try:
            store, failed = sweeps.sweep(
                ours, site, wanted, rich_console.console(stderr=True), tell
            )
        except KeyboardInterrupt:
            say("", err=True)
            say("The same command goes on with this sweep.", err=True)
            raise
        states = [runs.find_run(store, member.name) for member in wanted]
        # Not refused any more: what was trained is to be shown.
        metric = metric or comparison.metric_of(store, states, "")
        show_comparison(comparison.compare(store, states, metric), metric, as_json, failed=failed)
    if failed:
        done = f"{len(wanted) - len(failed)} of {len(wanted)} runs of the sweep are completed"
        raise RunFailed(", ".join(failed), f"failed; {done}; the same command tries again")


@click.command()
@config_argument(metavar="CONFIG")
@click.option(
    "--kind",
    required=True,
    type=click.Choice(baselines.KINDS),
    help="local: a model for each client, alone; centralised: one on the data of all.",
)
@output_option("JSON file, for --baseline of compare and plot.", required=False)
@click.option(
    "--clients",
    default=0,
    type=click.IntRange(min=0),
    help="With so many of the clients alone, drawn by run.seed. Default: all.",
)
@click.option(
    "--data",
    multiple=True,
    metavar="FOLDER",
    help="Of data; wins over data.dir. With data.partition = site one for each client, "
    "which is called as its folder.",
)
@click.option("--test-data", default="", metavar="FOLDER", help="Default: the first --data.")
@device_options
@set_option()
@json_option
def baseline(
    config: str,
    kind: str,
    output: Path | None,
    clients: int,
    data: tuple[str, ...],
    test_data: str,
    device: str,
    threads: int,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """
    Train CONFIG without a federation: each client alone, or one model on all data.

    What a federated run of CONFIG is compared with. Here, in this process, and without Redis, with
    the task, shares, version 0, seed and optimiser of the run: each model makes run.rounds times
    train.epochs passes over its data, and is tested on the central test set (with
    run.evaluate_every = 0 on what was held out). A task of your own is imported from the current
    folder.
    """
    loaded = configs.load(config, overrides)
    folders = tuple(data_folder(folder) for folder in data)
    test = data_folder(test_data)
    from fl_queue.experiments import baseline_training  # torch

    def tell(index: int, count: int, client: str, number: int, found: Mapping[str, float]) -> None:
        if found or number == loaded.run["rounds"]:
            words = progress.describe_metrics(found) or "trained"
            say(f"{index + 1} of {count}: {client}, round {number}: {words}", err=True)

    made = baseline_training.train(
        loaded,
        kind,
        launching.default_run_name(config),
        clients=clients,
        place=baseline_training.BaselineMachine(folders, test, device, threads),
        tell=tell,
    )
    if output is not None:
        baselines.write(output, made)
    if as_json:
        write_json(asdict(made))
    else:
        wide_console().print(baselines.table(made))
        for line in baselines.summary(made):
            say(line)
