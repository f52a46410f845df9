"""
Private redis-servers, so that nothing has to be installed, configured or running.

Two servers, one for each role: ``control`` (every write fsynced before its reply) and
``data`` (blobs; nothing on disk). Both belong to the thread that started them and end with it,
even when it is killed with ``kill -9``. They listen on unix sockets that only their owner can
open.

A state folder holds::

    redis.lock            held by the starter and its servers; one set of servers a folder
    redis.json            {url, blob_url, pids} while they run
    control/  data/       redis.conf, users.acl, redis.log, redis.sock, control's append-only file
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from fl_queue.common import files
from fl_queue.errors import ConfigError, ServerStartError
from fl_queue.store.embedded.redis_server import Role, Server, answers
from fl_queue.store.embedded.server_binary import files_of, find_server

ROLES: tuple[Role, ...] = ("control", "data")

#: Time a server may take to end after SIGTERM, before SIGKILL.
STOP_S = 10.0
#: Time the servers of a starter that was killed may take to end.
_LOCK_WAIT_S = 3.0
#: The kernel allows 107 bytes.
_SOCKET_PATH_BYTES = 100


def default_state_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """
    The folder of this account's private servers and checkpoints.

    ``$FLQ_STATE_DIR``, else ``$XDG_STATE_HOME/fl-queue``, else ``~/.local/state/fl-queue``.

    Raises:
        ConfigError: The account has no home folder, and the environment names none.
    """
    if given := environ.get("FLQ_STATE_DIR"):
        return Path(given).absolute()
    # The XDG specification has relative paths ignored.
    if (xdg := Path(environ.get("XDG_STATE_HOME", ""))).is_absolute():
        return xdg / "fl-queue"
    try:
        home = Path(environ["HOME"]) if environ.get("HOME") else Path.home()
    except RuntimeError as exc:
        reason = "this account has no home folder; set FLQ_STATE_DIR to a folder it can write to"
        raise ConfigError("FLQ_STATE_DIR", reason) from exc
    return home / ".local" / "state" / "fl-queue"


def start(
    state_dir: Path | None = None, *, tcp: bool = False, server: Path | None = None
) -> EmbeddedRedis:
    """
    Start both servers and wait until they answer.

    They end when the calling *thread* ends, so call this from one that lives as long as they
    are needed (the main thread).

    Args:
        state_dir: Their folder, made when missing; None for ``default_state_dir()``.
        tcp: Listen on free loopback ports too, behind a random password (any user of the
            machine can connect to a port), and give out those URLs.
        server: The redis-server or valkey-server; None for ``find_server`` of what the folder holds.

    Raises:
        ServerStartError: No server binary, servers of this folder run already, the folder cannot
            be written, or a server does not come up (the message has its last log lines).
    """
    folder = (state_dir or default_state_dir()).absolute()
    binary = server or find_server(files_of(folder))
    with ExitStack() as undo:
        try:
            files.folder(folder)
            lock = _lock(folder)
            undo.callback(os.close, lock)
            redis = EmbeddedRedis(folder, binary, lock, tcp=tcp)
            undo.pop_all()
            undo.callback(redis.stop)
            redis._launch()
        except OSError as exc:
            raise ServerStartError(str(folder), f"the private servers cannot start: {exc}") from exc
        undo.pop_all()
    return redis


def running(state_dir: Path) -> tuple[str, str] | None:
    """
    The (url, blob_url) of the private servers that run in this folder.

    None unless both answer.
    """
    try:
        entry = json.loads((state_dir / "redis.json").read_text(encoding="utf-8"))
        url, blob_url = str(entry["url"]), str(entry["blob_url"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return (url, blob_url) if answers(url) and answers(blob_url) else None


def _lock(state_dir: Path) -> int:
    """
    Take the folder's lock; the servers inherit it, so it is free when the last of all has ended.

    Waits a moment: servers of a starter that was just killed are on their way out.
    """
    try:
        return files.acquire_lock(state_dir / "redis.lock", _LOCK_WAIT_S)
    except TimeoutError as exc:
        reason = (
            "private servers run in this folder already; use those, stop them, "
            "or choose another folder with FLQ_STATE_DIR"
        )
        raise ServerStartError(str(state_dir), reason) from exc


class EmbeddedRedis:
    """
    The two running servers; made by ``start``, ended by ``stop`` or as a context manager.

    Args:
        state_dir: Their folder.
        server: The redis-server binary.
        lock: Descriptor of the folder's lock; owned from here on.
        tcp: Listen on loopback ports as well.
    """

    def __init__(self, state_dir: Path, server: Path, lock: int, *, tcp: bool) -> None:
        self.state_dir = state_dir
        self._lock: int | None = lock
        self._socket_dir: Path | None = None
        password = secrets.token_hex(16) if tcp else ""
        self._servers: dict[Role, Server] = {}
        for role in ROLES:
            folder = state_dir / role
            port = _free_port() if tcp else 0
            self._servers[role] = Server(role, server, folder, self._socket(folder), port, password)

    @property
    def url(self) -> str:
        """URL of the control server."""
        return self._servers["control"].url

    @property
    def blob_url(self) -> str:
        """URL of the data server."""
        return self._servers["data"].url

    @property
    def pids(self) -> dict[Role, int]:
        """Process id of each server; of one that was killed, its last."""
        return {role: server.pid for role, server in self._servers.items()}

    def stop(self) -> None:
        """End both servers (SIGTERM, SIGKILL after ``STOP_S``) and clean up; again is no error."""
        if self._lock is None:
            return
        (self.state_dir / "redis.json").unlink(missing_ok=True)
        for server in self._servers.values():
            server.send(signal.SIGTERM)
        deadline = time.monotonic() + STOP_S
        for server in self._servers.values():
            server.end(max(0.0, deadline - time.monotonic()))
        if self._socket_dir:
            shutil.rmtree(self._socket_dir, ignore_errors=True)
        os.close(self._lock)
        self._lock = None

    def kill(self, role: Role) -> None:
        """End one server as a crash would: SIGKILL, nothing flushed, nothing removed."""
        self._servers[role].end(0.0)

    def restart(self, role: Role) -> None:
        """
        Start one server again, on the same folder and the same URL; ends it first if it runs.

        Raises:
            ServerStartError: It does not come up.
        """
        server = self._servers[role]
        server.send(signal.SIGTERM)
        server.end(STOP_S)
        server.launch(self._held_lock())
        server.await_ready()
        self._announce()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _launch(self) -> None:
        for server in self._servers.values():
            server.launch(self._held_lock())
        for server in self._servers.values():
            server.await_ready()
        self._announce()

    def _held_lock(self) -> int:
        if self._lock is None:
            raise ServerStartError(str(self.state_dir), "the private servers were stopped")
        return self._lock

    def _announce(self) -> None:
        entry = {"url": self.url, "blob_url": self.blob_url, "pids": self.pids}
        with files.write_atomically(self.state_dir / "redis.json") as file:
            file.write(json.dumps(entry, indent=2).encode() + b"\n")

    def _socket(self, folder: Path) -> Path:
        path = folder / "redis.sock"
        if len(os.fsencode(path)) < _SOCKET_PATH_BYTES:
            return path
        if self._socket_dir is None:
            self._socket_dir = _short_folder()
        return self._socket_dir / f"{folder.name}.sock"


def _free_port() -> int:
    # Another process may take it before the server does; the server then reports it.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _short_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="flq-"))
    if len(os.fsencode(folder / "control.sock")) < _SOCKET_PATH_BYTES:
        return folder
    folder.rmdir()
    return Path(tempfile.mkdtemp(prefix="flq-", dir="/tmp"))
