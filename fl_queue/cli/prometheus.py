"""``fl-queue prometheus``."""

from __future__ import annotations

import threading

import click

from fl_queue.cli.options import Deployment, connection_options, interrupt_on_sigterm
from fl_queue.cli.output import print_line
from fl_queue.common.extras import how_to_install
from fl_queue.errors import ConfigError


@click.command()
@click.option(
    "--port",
    default=9464,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Port to bind; 0: a free one.",
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to bind. There is no password; names of runs are the only text that is served.",
)
@connection_options
def prometheus(deployment: Deployment, port: int, host: str) -> None:
    """
    Serve metrics of rounds, queues and clients for Prometheus.

    The address is http://HOST:PORT/metrics. Needs the extra prometheus.
    """
    try:
        from fl_queue.reporting.exporters import prometheus as exporter
    except ModuleNotFoundError as exc:
        reason = f"needs prometheus-client; {how_to_install('prometheus')}"
        raise ConfigError("prometheus", reason) from exc
    interrupt_on_sigterm()
    try:
        server = exporter.serve(deployment.open(), host, port)
    except OSError as exc:
        raise ConfigError(
            "--port", f"cannot listen at {host}:{port} ({exc}); choose another"
        ) from exc
    print_line(f"http://{host}:{server.server_port}/metrics")
    threading.Event().wait()
