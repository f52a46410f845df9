"""
The commands that hand a run to other tools: ``export`` its model, ``metrics`` and ``prometheus`` its numbers.
"""

from __future__ import annotations

import threading
from pathlib import Path

import click

from fl_queue.cli.completion import run_argument
from fl_queue.cli.options import (
    Where,
    check_imports,
    complain,
    connection_options,
    data_folder,
    output_option,
    say,
)
from fl_queue.cli.start import interrupt_on_sigterm
from fl_queue.common.extras import how_to_install
from fl_queue.coordinator.rounds import runs
from fl_queue.errors import ConfigError
from fl_queue.models import selection
from fl_queue.models.model_store import ModelStore
from fl_queue.reporting import exporters, model_export
from fl_queue.reporting import model_card as cards


@click.command()
@run_argument()
@output_option("File to write.")
@click.option("--version", type=click.IntRange(min=0), help="Default: the newest.")
@click.option("--best", is_flag=True, help="The version that run.select names.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(model_export.FORMATS),
    help="Default: by the suffix, .onnx or .pt; else safetensors. onnx is an extra.",
)
@click.option(
    "--card",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write a model card, Markdown: README.md, say.",
)
@click.option(
    "--task-allow",
    "allow",
    multiple=True,
    metavar="MODULE:NAME",
    help="An own task that may be imported here, for onnx and the card.",
)
@click.option("--data", default="", help="Data folder, if the model depends on it.")
@connection_options
def export(
    where: Where,
    run: str,
    output: Path,
    version: int | None,
    best: bool,
    kind: str | None,
    card: Path | None,
    allow: tuple[str, ...],
    data: str,
) -> None:
    """
    Write a model version of RUN as safetensors, torch state dict or ONNX, and a model card.

    safetensors and torch are for load_state_dict. The ONNX graph takes a batch of any size as
    `input`. The model card says how the model is used, what it was trained on, how good it is.
    """
    check_imports("--task-allow", allow)
    folder = data_folder(data)
    store = where.open()
    state = runs.find_run(store, run)
    loaded = runs.current_config(store, state.run_id)
    if best and version is not None:
        raise ConfigError("--best", "goes without --version")
    chosen = selection.chosen_version(store, state, loaded, version, best)
    kind = kind or model_export.format_of(output)
    models = ModelStore(store, state.run_id, loaded.redis["chunk_bytes"], where.state_dir)
    digest = model_export.export_version(models, state, loaded, chosen, output, kind, allow, folder)
    say(f"{output}: version {chosen}, digest {digest}")
    if card is not None:
        from fl_queue.tasks import export  # torch

        usage = export.usage_of(loaded, allow, folder)
        cards.write(card, cards.gather(store, state, loaded, chosen, usage), output.name, kind)
        say(f"{card}: its model card")


@click.command()
@run_argument()
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--to",
    "kind",
    required=True,
    type=click.Choice(exporters.KINDS),
    help="What writes: its package is the extra of that name.",
)
@click.option(
    "--follow", is_flag=True, help="Go on while RUN does, until it has ended and been evaluated."
)
@connection_options
def metrics(where: Where, run: str, folder: Path, kind: str, follow: bool) -> None:
    """
    Write the numbers of RUN where TensorBoard, MLflow or a spreadsheet reads them.

    Several runs may have the same DIR. Repeating it writes what is new, and nothing twice.
    """
    store = where.open_control()
    state = runs.find_run(store, run)
    sink = exporters.open_sink(kind, folder, state.run_id)
    if not follow:
        say(f"{folder}: {exporters.export(store, state, sink)} new numbers of {state.name}")
        return

    for count in exporters.follow(store, state, sink, complain):
        if count:
            say(f"{folder}: {count} new numbers of {state.name}")


@click.command()
@click.option("--port", default=9464, show_default=True, type=click.IntRange(0, 65535))
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen at. There is no password: names of runs are all that can be read.",
)
@connection_options
def prometheus(where: Where, port: int, host: str) -> None:
    """Answer Prometheus at /metrics: rounds, updates, queues, clients, the healer."""
    try:
        from fl_queue.reporting.exporters import prometheus as exporter
    except ModuleNotFoundError as exc:
        reason = f"needs prometheus-client; {how_to_install('prometheus')}"
        raise ConfigError("prometheus", reason) from exc
    interrupt_on_sigterm()
    try:
        server = exporter.serve(where.open(), host, port)
    except OSError as exc:
        raise ConfigError(
            "--port", f"nobody can listen at {host}:{port} ({exc}); choose another"
        ) from exc
    say(f"http://{host}:{server.server_port}/metrics")
    threading.Event().wait()
