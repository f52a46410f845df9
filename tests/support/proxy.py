"""A bad network: a proxy before a redis-server that loses replies, or is slow, on command."""

from __future__ import annotations

import socket
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Self
from urllib.parse import unquote, urlsplit

#: How a client learns that its reply is lost: the connection breaks, or it waits in vain.
Loss = Literal["reset", "timeout"]
_PIECE_BYTES = 16 * 1024


class _Link:
    """One client's connection to the server."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client, self.server = client, server
        self.answered = False
        self.losing = False

    def shut(self) -> None:
        for end in (self.client, self.server):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # It has ended already.


class Proxy:
    """
    Passes everything on, until its user makes it fail. Use as a context manager.

    Args:
        upstream: URL of the server, ``unix:///path``. Unix sockets are used on both sides because
            the kernel keeps little in them: a throttled sender really waits.
    """

    def __init__(self, upstream: str) -> None:
        self._upstream = unquote(urlsplit(upstream).path)
        self._folder = tempfile.TemporaryDirectory(prefix="flq-proxy-")
        self._path = Path(self._folder.name) / "redis.sock"
        self._listener = socket.socket(socket.AF_UNIX)
        self._lock = threading.Lock()
        self._links: list[_Link] = []
        self._threads: list[threading.Thread] = []
        self._marker = b""
        self._loss: Loss = "reset"
        self._bytes_per_s = 0.0
        self._seen: set[bytes] = set()
        self._spare = b""
        #: Replies that no client got, though the server had done what was asked.
        self.lost = 0
        #: Bytes that clients sent.
        self.sent_bytes = 0

    @property
    def url(self) -> str:
        """URL for the clients."""
        return f"unix://{self._path}"

    def lose_replies(self, marker: bytes, loss: Loss, spare: bytes = b"") -> None:
        """
        Lose the first reply to every different request that contains ``marker``.

        The server has executed the request by then. The same bytes sent again are answered.
        Requests of more than ``_PIECE_BYTES`` may be cut off instead, and those with ``spare`` in them
        are answered.
        """
        self._seen.clear()
        self.lost = 0
        self._marker, self._loss, self._spare = marker, loss, spare

    def _is_marked(self, request: bytes) -> bool:
        spared = bool(self._spare) and self._spare in request
        return bool(self._marker) and self._marker in request and not spared

    def throttle(self, bytes_per_s: float) -> None:
        """Let each connection pass so many bytes a second in each direction."""
        self._bytes_per_s = bytes_per_s

    def __enter__(self) -> Self:
        self._listener.bind(str(self._path))
        self._listener.listen()
        self._start(self._accept)
        return self

    def __exit__(self, *exc: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for link in self._links:
            link.shut()
        for thread in self._threads:
            thread.join(10)
        self._listener.close()
        for link in self._links:
            link.client.close()
            link.server.close()
        self._folder.cleanup()

    def _start(self, work: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            link = _Link(client, server)
            self._links.append(link)
            try:
                server.connect(self._upstream)
            except OSError:
                link.shut()
                continue
            self._start(self._pass_requests, link)
            self._start(self._pass_replies, link)

    def _pass_requests(self, link: _Link) -> None:
        request = b""
        try:
            while piece := link.client.recv(_PIECE_BYTES):
                self._pace(len(piece))
                with self._lock:
                    self.sent_bytes += len(piece)
                    request = piece if link.answered else request + piece
                    link.answered = False
                    if self._is_marked(request) and request not in self._seen:
                        self._seen.add(request)
                        self.lost += 1
                        link.losing = True
                link.server.sendall(piece)
                if link.losing and self._loss == "reset":
                    # The server answers all it has been sent, then ends the connection.
                    link.server.shutdown(socket.SHUT_WR)
                    return
        except OSError:
            pass  # One of the two is gone, and the other is closed below.
        link.shut()

    def _pass_replies(self, link: _Link) -> None:
        try:
            while piece := link.server.recv(_PIECE_BYTES):
                self._pace(len(piece))
                link.answered = True
                if not link.losing:
                    link.client.sendall(piece)
        except OSError:
            pass
        link.shut()

    def _pace(self, nbytes: int) -> None:
        if self._bytes_per_s:
            time.sleep(nbytes / self._bytes_per_s)
