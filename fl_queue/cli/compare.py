"""``fl-queue compare``, and the table that ``sweep`` shares with it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from fl_queue.cli.completion import run_argument
from fl_queue.cli.options import Deployment, baseline_option, connection_options, json_option
from fl_queue.cli.output import print_json, print_line
from fl_queue.coordinator.rounds import runs
from fl_queue.reporting import baselines, comparison, rich_console
from fl_queue.reporting.rich_console import Console, Table

#: Columns of a table that is written to a file or a pipe.
_FILE_WIDTH = 200


def metric_option(command: Any) -> Any:
    """Add ``--metric``; the command gets it as ``metric``."""
    return click.option(
        "--metric",
        default="",
        help="Metric to compare. Default: accuracy, or loss where no run has one.",
    )(command)


@click.command("compare")
@run_argument("names", metavar="RUN...", nargs=-1, required=True)
@metric_option
@baseline_option
@json_option
@connection_options
def compare_command(
    deployment: Deployment,
    names: tuple[str, ...],
    metric: str,
    baseline: tuple[Path, ...],
    as_json: bool,
) -> None:
    """
    Show runs side by side: metric, time, different settings.

    Values are from the central test set, else from the clients' validation. Runs that differ in
    run.seed alone also get their mean and standard deviation. A file of `fl-queue baseline` is one
    more row: the mean of its models.
    """
    beside = [baselines.read(path) for path in baseline]
    store = deployment.open_control()
    states = [runs.find_run(store, name) for name in dict.fromkeys(names)]
    for state in states:
        runs.check_is_model(store, state)
    metric = comparison.metric_of(store, states, metric)
    show_comparison(comparison.compare(store, states, metric, beside), metric, as_json)


def show_comparison(
    rows: list[comparison.ComparedRun], metric: str, as_json: bool, **more: Any
) -> None:
    """
    Print runs side by side.

    Args:
        rows: One or more.
        more: Additional keys of the JSON document.
    """
    sweeps = comparison.sweeps(rows)
    if as_json:
        print_json(
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
        print_line(
            f"{f'{common}: ' if common else ''}{', '.join(sweep.runs)} differ in run.seed alone: "
            f"{metric} {sweep.mean:.4f} ± {sweep.deviation:.4f}, best {sweep.best_mean:.4f} ± "
            f"{sweep.best_deviation:.4f}"
        )
    for row in rows:
        if row.spread:
            print_line(f"{row.name}: {metric} {row.spread}")


def wide_console() -> Console:
    """Make a console as wide as the terminal; wide in a file, so that no cell is cut off."""
    console = rich_console.console()
    if console.is_terminal:
        return console
    return rich_console.console(width=max(console.width, _FILE_WIDTH))


def _table(rows: list[comparison.ComparedRun], metric: str) -> Table:
    fields = list(rows[0].settings)
    # Of the clients' validation: it is not of the same rows in each run.
    by_clients = any(row.clients is not None for row in rows)
    of = ("Clients", "Examples") if by_clients else ()
    columns = ("State", "Version", metric, *of, "Best", "At", "Abandoned", "Seconds", *fields)
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
            *((_cell(row.clients), _cell(row.examples)) if by_clients else ()),
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
