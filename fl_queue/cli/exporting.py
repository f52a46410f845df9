"""
The commands that hand a run's numbers to other tools: ``metrics``, ``prometheus``.
"""

from __future__ import annotations

import threading
from pathlib import Path

import click

from fl_queue import exporters, runs
from fl_queue.cli.common import Where, connection_options
from fl_queue.cli.completing import run_argument
from fl_queue.cli.running import interrupt_on_sigterm
from fl_queue.errors import ConfigError


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
    store = where.open()
    state = runs.find_run(store, run)
    sink = exporters.open_sink(kind, folder, state.run_id)
    if not follow:
        click.echo(f"{folder}: {exporters.export(store, state, sink)} new numbers of {state.name}")
        return
    for count in exporters.follow(store, state, sink):
        if count:
            click.echo(f"{folder}: {count} new numbers of {state.name}")


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
        from fl_queue.exporters import prometheus as exporter
    except ModuleNotFoundError as exc:
        reason = 'needs prometheus-client; install it with `pip install "fl-queue[prometheus]"`'
        raise ConfigError("prometheus", reason) from exc
    interrupt_on_sigterm()
    try:
        server = exporter.serve(where.open(), host, port)
    except OSError as exc:
        raise ConfigError(
            "--port", f"nobody can listen at {host}:{port} ({exc}); choose another"
        ) from exc
    click.echo(f"http://{host}:{server.server_port}/metrics")
    threading.Event().wait()
