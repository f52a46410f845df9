"""HTTP server of the page: binds an address or a unix socket, and serves until it is stopped."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles
from starlette.types import ASGIApp

from fl_queue._version import __version__
from fl_queue.errors import ConfigError
from fl_queue.web import api, pages, prometheus
from fl_queue.web.access import Access
from fl_queue.web.connection import Connection
from fl_queue.web.event_feed import Feed
from fl_queue.web.launch import Configs
from fl_queue.web.limits import Logins, is_loopback
from fl_queue.web.security import Guard

_STATIC = Path(__file__).parent / "static"


@dataclass(frozen=True)
class ServerSettings:
    """
    Address of the page.

    Args:
        host, port: Address; port 0: a free one.
        uds: Unix socket, instead of an address.
        uds_mode: Mode of that socket, which decides which users may connect.
    """

    host: str = "127.0.0.1"
    port: int = 5000
    uds: Path | None = None
    uds_mode: int = 0o600

    @property
    def is_private(self) -> bool:
        """Whether it is reachable from this machine alone."""
        return self.uds is not None or is_loopback(self.host)


def build(connection: Connection, offered: Configs, access: Access) -> ASGIApp:
    """Make the application: page and API behind the security checks."""
    app = FastAPI(
        title="fl-queue",
        version=__version__,
        description="Runs, rounds and clients of fl-queue: the records of its commands' `--json`.",
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/v1/openapi.json",
    )
    feed = Feed(connection, {"csrf": access.csrf, "version": __version__})
    logins = Logins()
    api.add_handlers(app)
    app.include_router(api.router(connection, feed, offered))
    app.include_router(prometheus.router(connection))
    app.include_router(pages.router(connection, offered, access, logins))
    app.mount("/static", StaticFiles(directory=_STATIC))
    return Guard(app, access, logins)


def serve(
    connection: Connection,
    place: ServerSettings,
    offered: Configs,
    access: Access,
    printed: Sequence[str],
    show: Callable[[str], None],
) -> None:
    """
    Serve until SIGINT or SIGTERM.

    Args:
        printed: New tokens, which are shown: none, that for everything, and that for reading.
        show: Called with the URL, with each of these.

    Raises:
        ConfigError: The address cannot be bound.
    """
    access = replace(access, hosts=access.hosts | {place.host})
    with _bound(place) as (listener, url):
        for line in _greeting(url, printed):
            show(line)
        config = uvicorn.Config(
            build(connection, offered, access),
            log_level="warning",
            log_config=None,
            lifespan="off",
            server_header=False,
            proxy_headers=False,  # ``limits.address_of`` and the login read what they need of them.
            # The event stream of an open page never ends by itself.
            timeout_graceful_shutdown=1,
        )
        uvicorn.Server(config).run(sockets=[listener])


def _greeting(url: str, printed: Sequence[str]) -> list[str]:
    if not printed:
        return [url]
    if not url.startswith("http"):
        return [url, *map("{} {}".format, ("token:", "token to read only:"), printed)]
    return list(map(f"{{}}{url}?token={{}}".format, ("", "read only: "), printed))


@contextmanager
def _bound(place: ServerSettings) -> Iterator[tuple[socket.socket, str]]:
    """Bind a socket. Yields: the socket and its URL. A unix socket is removed afterwards."""
    if place.uds is None:
        yield _bound_to_address(place.host, place.port)
        return
    listener = _bound_to_path(place.uds, place.uds_mode)
    inode = place.uds.lstat().st_ino
    try:
        yield listener, f"unix:{place.uds}"
    finally:
        with suppress(FileNotFoundError):
            if place.uds.lstat().st_ino == inode:  # Another server may have replaced it.
                place.uds.unlink()
        listener.close()


def _bound_to_address(host: str, port: int) -> tuple[socket.socket, str]:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family)
    except OSError as exc:
        reason = f"{host}:{port} cannot be bound: {exc.strerror or exc}; choose another one"
        raise ConfigError("--port", reason) from exc
    shown = f"[{host}]" if ":" in host else host
    return listener, f"http://{shown}:{listener.getsockname()[1]}/"


def _bound_to_path(path: Path, mode: int) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    # The umask sets the mode at creation: a chmod afterwards would come too late, and follow a link.
    before = os.umask(0o777 & ~mode)
    try:
        if _is_left_over(path):
            path.unlink()
        listener.bind(str(path))
        listener.listen(100)
    except OSError as exc:
        listener.close()
        reason = f"{path} cannot be bound: {exc.strerror or exc}; name another one"
        raise ConfigError("--uds", reason) from exc
    finally:
        os.umask(before)
    return listener


def _is_left_over(path: Path) -> bool:
    """Whether a path is the socket of a killed server. Other files are not removed."""
    if not path.is_socket():
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return True
    return False
