"""``fl-queue metrics``."""

from __future__ import annotations

from pathlib import Path

import click

from fl_queue.cli.completion import run_argument
from fl_queue.cli.options import Deployment, connection_options, follow_option, json_option
from fl_queue.cli.output import print_json_line, print_line, print_result, warn
from fl_queue.coordinator.rounds import runs
from fl_queue.reporting import exporters


@click.command()
@run_argument()
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--to",
    "kind",
    required=True,
    type=click.Choice(exporters.KINDS),
    help="Format. tensorboard and mlflow need the extra of that name.",
)
@follow_option("Go on until RUN has ended and all its versions are tested.")
@json_option
@connection_options
def metrics(
    deployment: Deployment, run: str, folder: Path, kind: str, follow: bool, as_json: bool
) -> None:
    """
    Write the metrics of RUN for TensorBoard, MLflow or as CSV.

    Several runs may share DIR. Repeating the command adds what is new; nothing is written twice.
    """
    store = deployment.open_control()
    state = runs.find_run(store, run)
    runs.check_is_model(store, state)
    sink = exporters.open_sink(kind, folder, state.run_id)

    def record(count: int) -> dict[str, object]:
        return {"run": state.name, "folder": str(folder), "new": count}

    if not follow:
        count = exporters.export(store, state, sink)
        print_result(as_json, record(count), [f"{folder}: {count} new numbers of {state.name}"])
        return
    for count in exporters.follow(store, state, sink, warn):
        if count and as_json:
            print_json_line(record(count))
        elif count:
            print_line(f"{folder}: {count} new numbers of {state.name}")
