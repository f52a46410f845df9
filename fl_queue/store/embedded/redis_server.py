"""
One private redis-server or valkey-server: its config and users, its process, and its readiness.

The readiness check is a dozen lines on a raw socket instead of redis-py, which the start of a server would
have to import.
"""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import quote, unquote, urlsplit

from fl_queue.common import files
from fl_queue.common.processes import die_with_parent
from fl_queue.errors import ServerStartError

Role = Literal["control", "data"]

#: Time a server may take to load its append-only file and answer.
READY_S = 20.0
POLL_S = 0.02
#: Users of a server and their rules; ``requirepass`` is not for servers that have it.
USERS = "users.acl"
_LOG_LINES = 5

_SETTINGS: dict[Role, tuple[str, ...]] = {
    "control": ("appendonly yes", "appendfsync always"),
    "data": ("appendonly no",),
}


@dataclass
class Server:
    """
    One redis-server.

    Args:
        role: Decides what it keeps on disk.
        binary: As ``server_binary.find_server`` finds it.
        folder: Of its config, users, log and append-only file.
        socket: Unix socket it listens on.
        port: On loopback, besides; 0: none.
        password: Of the port; empty without one.
    """

    role: Role
    binary: Path
    folder: Path
    socket: Path
    port: int
    password: str
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def url(self) -> str:
        """URL of the server, with the password."""
        if self.port:
            return f"redis://:{self.password}@127.0.0.1:{self.port}/0"
        return f"unix://{quote(os.fspath(self.socket))}?db=0"

    @property
    def pid(self) -> int:
        """Of the process, or of the last one; 0 before the first."""
        return self._process.pid if self._process else 0

    def launch(self, lock: int) -> None:
        """Start the process; it inherits the lock, which so lasts as long as the server."""
        files.folder(self.folder)
        for name, text in (("redis.conf", self._config()), (USERS, self._users())):
            with files.write_atomically(self.folder / name) as file:
                file.write(text.encode())
        starter = os.getpid()
        # The config comes by stdin: Redis 7 takes a file name for a pattern, and one with a "?"
        # in it that matches nothing for no config at all, which is an open port 6379.
        with (
            (self.folder / "redis.conf").open("rb") as config,
            files.appended(self.folder / "redis.log") as log,
        ):
            self._process = subprocess.Popen(
                [self.binary, "-"],
                stdin=config,
                stdout=log,
                stderr=log,
                umask=files.PRIVATE_UMASK,
                pass_fds=(lock,),
                # Own session: Ctrl-C is for the starter, who stops its workers before its servers.
                start_new_session=True,
                # Only the child itself can ask the kernel for this. A launcher in between would
                # need `setpriv`, which not every image has, or cost a Python start.
                preexec_fn=lambda: die_with_parent(starter, signal.SIGTERM),
            )

    def await_ready(self) -> None:
        """
        Wait until the server answers.

        Raises:
            ServerStartError: It died, or did not answer within ``READY_S``.
        """
        deadline = time.monotonic() + READY_S
        while not answers(self.url):
            if self._process is None or self._process.poll() is not None:
                raise ServerStartError(
                    self._where, f"the private server died; {self._last_words()}"
                )
            if time.monotonic() > deadline:
                reason = (
                    f"the private server did not answer for {READY_S:.0f} s; {self._last_words()}"
                )
                raise ServerStartError(self._where, reason)
            time.sleep(POLL_S)

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
        """The text of redis.conf; every option is known to Redis 6.2 and 8 and to Valkey."""
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
            # To stdout, so that redis.log also has the lines before the config is read.
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


def _quoted(path: Path) -> str:
    text = os.fspath(path).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{text}"'
