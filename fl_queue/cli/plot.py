"""``fl-queue plot``."""

from __future__ import annotations

from pathlib import Path

import click

from fl_queue.cli.completion import run_argument
from fl_queue.cli.options import (
    Deployment,
    baseline_option,
    connection_options,
    json_option,
    output_option,
)
from fl_queue.cli.output import print_result
from fl_queue.coordinator.rounds import runs
from fl_queue.models import selection
from fl_queue.reporting import baselines, rounds_table


@click.command()
@run_argument()
@output_option("PNG or SVG file.")
@baseline_option
@json_option
@connection_options
def plot(
    deployment: Deployment, run: str, output: Path, baseline: tuple[Path, ...], as_json: bool
) -> None:
    """Draw the accuracy and loss of RUN by version."""
    beside = [baselines.read(path) for path in baseline]
    store = deployment.open_control()
    state = runs.find_run(store, run)
    runs.check_is_model(store, state)
    run_id = state.run_id
    rounds_table.plot(
        output, store.control.history.records(run_id), selection.test_metrics(store, run_id), beside
    )
    print_result(as_json, {"file": str(output)}, [str(output)])
