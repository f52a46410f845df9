"""
The server of the page: binds, tells where it is, and answers until it is stopped.
"""

from __future__ import annotations

import ipaddress
import secrets
import socket
from collections.abc import Callable
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles
from starlette.types import ASGIApp

from fl_queue import __version__
from fl_queue.errors import ConfigError
from fl_queue.web import api, metrics, pages
from fl_queue.web.connection import Connection
from fl_queue.web.feed import Feed
from fl_queue.web.guard import Access, Guard
from fl_queue.web.launch import Configs

_STATIC = Path(__file__).parent / "static"


def build(connection: Connection, offered: Configs, access: Access) -> ASGIApp:
    """The page and the API, behind the guard."""
    app = FastAPI(
        title="fl-queue",
        version=__version__,
        description="Runs, rounds and clients of fl-queue: the records of its commands' `--json`.",
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/v1/openapi.json",
    )
    feed = Feed(connection, {"csrf": access.csrf, "version": __version__})
    api.add_handlers(app)
    app.include_router(api.router(connection, feed, offered))
    app.include_router(metrics.router(connection))
    app.include_router(pages.router(connection, offered, access))
    app.mount("/static", StaticFiles(directory=_STATIC))
    return Guard(app, access)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def serve(
    connection: Connection,
    host: str,
    port: int,
    offered: Configs,
    token: str,
    hosts: tuple[str, ...],
    say: Callable[[str], None],
) -> None:
    """
    Answer until SIGINT or SIGTERM.

    Args:
        port: 0: a free one.
        token: Who asks has to know it; empty: nobody, unless other machines reach ``host``: then one is made.
        hosts: Further names of this server.
        say: Told the URL, and the token when it was made here.

    Raises:
        ConfigError: The address cannot be bound.
    """
    made = "" if token or is_loopback(host) else secrets.token_urlsafe(32)
    access = Access(token or made, frozenset({*hosts, host}))
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family)
    except OSError as exc:
        reason = f"{host}:{port} cannot be bound: {exc.strerror or exc}; choose another one"
        raise ConfigError("--port", reason) from exc
    shown = f"[{host}]" if ":" in host else host
    say(f"http://{shown}:{listener.getsockname()[1]}/")
    if made:
        say(f"Token: {made}")
    config = uvicorn.Config(
        build(connection, offered, access),
        log_level="warning",
        log_config=None,
        lifespan="off",
        server_header=False,
        proxy_headers=False,
        # An open page never ends by itself.
        timeout_graceful_shutdown=1,
    )
    uvicorn.Server(config).run(sockets=[listener])
