"""
The commands that help to choose a config: ``try-task`` before a run, ``compare`` after several.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from fl_queue.cli.completion import config_argument, run_argument
from fl_queue.cli.options import (
    Where,
    baseline_option,
    connection_options,
    data_folder,
    device_options,
    json_option,
    say,
    set_option,
    write_json,
)
from fl_queue.client import disclosure
from fl_queue.config import metric_choice
from fl_queue.config import run_config as configs
from fl_queue.coordinator.rounds import runs
from fl_queue.errors import DataError
from fl_queue.reporting import baselines as baselines
from fl_queue.reporting import comparison, progress, rich_console
from fl_queue.reporting.rich_console import Console, Table

#: Columns of a table that goes to a file or a pipe.
_WIDE = 200


@click.command("compare")
@run_argument("names", metavar="RUN...", nargs=-1, required=True)
@click.option(
    "--metric",
    default="",
    help="Of the central test, else of the clients' validation. Default: accuracy, or loss where no run has one.",
)
@baseline_option
@json_option
@connection_options
def compare_command(
    where: Where,
    names: tuple[str, ...],
    metric: str,
    baseline: tuple[Path, ...],
    as_json: bool,
) -> None:
    """
    Runs side by side: how good, how long, and the config fields in which they differ.

    Runs that differ in run.seed alone also get their mean and spread. Files of `fl-queue baseline`
    are shown as runs are: of clients alone, the mean.
    """
    beside = [baselines.read(path) for path in baseline]
    store = where.open_control()
    states = [runs.find_run(store, name) for name in dict.fromkeys(names)]
    metric = comparison.metric_of(store, states, metric)
    show_comparison(comparison.compare(store, states, metric, beside), metric, as_json)


def show_comparison(
    rows: list[comparison.ComparedRun], metric: str, as_json: bool, **more: Any
) -> None:
    """
    Write runs side by side on standard output.

    Args:
        rows: One or more.
        more: What else the JSON document says.
    """
    sweeps = comparison.sweeps(rows)
    if as_json:
        write_json(
            {
                "metric": metric,
                "runs": [asdict(row) for row in rows],
                "sweeps": [asdict(sweep) for sweep in sweeps],
                **more,
            }
        )
        return
    wide_console().print(_table(rows, metric))
    for sweep in sweeps:
        common = ", ".join(f"{field} = {value}" for field, value in sweep.settings.items())
        say(
            f"{f'{common}: ' if common else ''}{', '.join(sweep.runs)} differ in run.seed alone: "
            f"{metric} {sweep.mean:.4f} ± {sweep.deviation:.4f}, best {sweep.best_mean:.4f} ± "
            f"{sweep.best_deviation:.4f}"
        )
    for row in rows:
        if row.spread:
            say(f"{row.name}: {metric} {row.spread}")


def wide_console() -> Console:
    """As wide as the terminal; wide where there is none, so that nothing is cut off in a file."""
    console = rich_console.console()
    return console if console.is_terminal else rich_console.console(width=max(console.width, _WIDE))


def _table(rows: list[comparison.ComparedRun], metric: str) -> Table:
    fields = list(rows[0].settings)
    columns = ("State", "Version", metric, "Best", "At", "Abandoned", "Seconds", *fields)
    drawn = rich_console.table()
    drawn.add_column("Run", no_wrap=True)
    for column in columns:
        drawn.add_column(column, overflow="fold")
    for row in rows:
        drawn.add_row(
            row.name,
            row.state,
            _cell(row.version),
            _cell(row.value),
            _cell(row.best),
            _cell(row.best_version),
            str(row.abandoned),
            f"{row.seconds:.1f}",
            *(str(row.settings[field]) for field in fields),
        )
    return drawn


def _cell(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


@click.command("try-task")
@config_argument(metavar="CONFIG")
@click.option("--data", default="", help="Folder of data; wins over data.dir of the config.")
@device_options
@click.option(
    "--max-examples", default=0, type=click.IntRange(min=0), help="As for a client's worker."
)
@click.option(
    "--show-update",
    is_flag=True,
    help="Show everything that would leave a site: each field of the header, each tensor.",
)
@set_option()
@json_option
def try_task(
    config: str,
    data: str,
    device: str,
    threads: int,
    max_examples: int,
    show_update: bool,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """
    Train one local round of CONFIG here, without Redis: its time, memory and update size.

    As the first client, with the code of a client's worker. A task of your own is imported from the
    current folder. The update is packed, read back and judged as in a run; nothing is sent. Exits
    with 3 when a run would not accept the model or the update, or could not be judged by run.select
    or run.stop_when.
    """
    loaded = configs.load(config, overrides)
    metric_choice.check_config(loaded)
    folder = data_folder(data)
    from fl_queue.experiments import trial  # torch

    def tell(number: int, count: int, found: Mapping[str, float]) -> None:
        say(f"epoch {number} of {count}: {progress.describe_metrics(found)}", err=True)

    done = trial.try_task(loaded, folder, device, threads, tell, max_examples, show_update)
    if as_json:
        write_json(asdict(done))
    else:
        for name, words in _told(asdict(done)).items():
            say(f"{name:12} {words}")
        for line in disclosure.format_update(done.leaves) if done.leaves else ():
            say(line)
    if done.problem:
        raise DataError("update", done.problem)


def _told(done: Mapping[str, Any]) -> dict[str, str]:
    told = "{client}: {num_examples} examples, {num_validation} to validate"
    if not done["num_validation"]:
        told += ", so no metrics; raise data.validation_fraction, or give more data"
    frozen = " ({frozen:,} of them frozen)" if done["frozen"] else ""
    size = "{parameters:,} numbers" + frozen + ", {model_bytes:,} bytes"
    largest = "{update_bytes:,} bytes; largest value {largest:.3g}, limit {limit:g}"
    if done["unused"]:
        found = ", ".join(f"{count} {kind}" for kind, count in sorted(done["unused"].items()))
        told += f"; not read: {found.replace('{', '{{').replace('}', '}}')}"
    return {
        "data": told.format(**done),
        "model": size.format(**done),
        "update": largest.format(**done),
        "time": "{data_s:.1f} s to begin, {train_s:.1f} s of training".format(**done),
        "memory": "{peak_bytes:,} bytes at most, torch included".format(**done),
        "before": progress.describe_metrics(done["base"]),
        "after": progress.describe_metrics(done["trained"]),
    } | ({"logged": progress.describe_metrics(done["logged"])} if done["logged"] else {})
