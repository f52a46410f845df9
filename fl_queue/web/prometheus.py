"""``/metrics`` of the page's server: the metrics of ``fl-queue prometheus`` without another process."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse, Response

from fl_queue.common.extras import how_to_install
from fl_queue.errors import StoreUnavailable
from fl_queue.store import Store
from fl_queue.web.connection import Connection

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

_MISSING = f"needs prometheus-client; {how_to_install('prometheus')}\n"
_DOWN = b"# TYPE flq_up gauge\nflq_up 0.0\n"


class Scrapes:
    """
    The metrics as text, from a registry that is kept between scrapes.

    Args:
        connection: To Redis.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._lock = threading.Lock()
        self._kept: tuple[Store, CollectorRegistry] | None = None

    def text(self) -> bytes:
        """
        Collect the metrics; ``flq_up 0`` alone while Redis is down.

        Raises:
            ModuleNotFoundError: The extra is missing.
        """
        from fl_queue.reporting.exporters import prometheus

        try:
            with self.connection.store() as store, self._lock:
                store.control.runs.names()  # Raises after an outage, so that the store is opened again.
                if self._kept is None or self._kept[0] is not store:
                    self._kept = store, prometheus.registry(store)
                return prometheus.text(self._kept[1])
        except StoreUnavailable:
            return _DOWN


def router(connection: Connection) -> APIRouter:
    """Make the route ``GET /metrics``."""
    made, scrapes = APIRouter(include_in_schema=False), Scrapes(connection)

    @made.get("/metrics")
    def metrics() -> Response:
        try:
            text = scrapes.text()
        except ModuleNotFoundError:
            return PlainTextResponse(_MISSING, 501)
        # The same as prometheus_client.CONTENT_TYPE_LATEST; the package may be missing.
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    return made
