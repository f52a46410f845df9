"""
Time for what is sent over a slow line: as much as its size needs at the slowest rate that is supported.

A socket's timeout is for all of a big value, and what has left the process may lie in buffers on the way,
so that the reply is late as well. A line that is dead, not slow, is found by the kernel as soon as before.
"""

from __future__ import annotations

import socket
import time
from typing import Any

from redis.connection import ConnectionPool

#: 64 kbit/s.
SLOWEST_BYTES_PER_S = 8_000
#: Shorter commands are not looked at.
_BIG_BYTES = 32 * 1024
#: The kernel asks a silent other end so often, and gives up after so many questions.
_ASK_EVERY_S, _ASKED = 10, 3


class _Paced:
    """A connection of redis-py whose big commands have the time they need."""

    _sock: Any
    socket_timeout: float | None
    #: Monotonic time at which all that was sent has arrived, at the slowest rate.
    _arrived_at = 0.0
    #: Big commands without a reply.
    _unanswered = 0

    def connect(self, *args: Any, **options: Any) -> Any:
        self._unanswered, self._arrived_at = 0, 0.0
        return super().connect(*args, **options)  # type: ignore[misc]

    def send_packed_command(self, command: Any, *args: Any, **options: Any) -> Any:
        nbytes = len(command) if isinstance(command, (str, bytes)) else sum(map(len, command))
        if nbytes > _BIG_BYTES:
            if self._sock is None:
                self.connect()
            self._expect(nbytes)
        return super().send_packed_command(command, *args, **options)  # type: ignore[misc]

    def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return super().read_response(*args, **options)  # type: ignore[misc]
        finally:
            if self._unanswered:
                self._unanswered -= 1
                self._set_timeout()

    def _expect(self, nbytes: int) -> None:
        self._unanswered += 1
        self._arrived_at = max(self._arrived_at, time.monotonic()) + nbytes / SLOWEST_BYTES_PER_S
        self._set_timeout()

    def _set_timeout(self) -> None:
        if self._sock is None or self.socket_timeout is None:
            return
        if not self._unanswered:
            self._arrived_at = 0.0
        elif self._sock.family in (socket.AF_INET, socket.AF_INET6):
            _find_dead(self._sock, self.socket_timeout)
        left_s = max(0.0, self._arrived_at - time.monotonic())
        self._sock.settimeout(self.socket_timeout + left_s)


def _find_dead(sock: socket.socket, after_s: float) -> None:
    """Have the kernel end a connection whose other end acknowledges nothing for so long."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(after_s * 1000))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _ASK_EVERY_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _ASK_EVERY_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _ASKED)


def pace(pool: ConnectionPool) -> None:
    """Have the connections of a pool give big commands the time that they need."""
    kind = pool.connection_class
    pool.connection_class = type(f"Paced{kind.__name__}", (_Paced, kind), {})
