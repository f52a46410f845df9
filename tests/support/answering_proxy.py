"""A proxy that answers in a server's place: for replies that no server can be brought to give."""

from __future__ import annotations

from tests.support.proxy import Proxy, _Link

_PIECE_BYTES = 64 * 1024


class Answering(Proxy):
    """As ``Proxy``; ``answer`` is the error that every command gets, empty for the server's own reply."""

    answer = ""

    def _pass_requests(self, link: _Link) -> None:
        request = b""
        try:
            while piece := link.client.recv(_PIECE_BYTES):
                if not self.answer and not request:
                    link.server.sendall(piece)
                    continue
                # It came in pieces, and the outage may have ended in between.
                request += piece
                count, request = _commands(request)
                link.client.sendall(f"-{self.answer or 'ERR'}\r\n".encode() * count)
        except OSError:
            pass  # One of the two is gone, and the other is closed below.
        link.shut()

    def _pass_replies(self, link: _Link) -> None:
        try:
            while piece := link.server.recv(_PIECE_BYTES):
                link.client.sendall(piece)
        except OSError:
            pass
        link.shut()


def _commands(data: bytes) -> tuple[int, bytes]:
    """How many whole commands bytes begin with, and what is left."""
    count = 0
    while (end := _end_of_command(data)) is not None:
        count, data = count + 1, data[end:]
    return count, data


def _end_of_command(data: bytes) -> int | None:
    line = data.find(b"\r\n")
    if line < 0:
        return None
    at = line + 2
    for _ in range(int(data[1:line])):
        line = data.find(b"\r\n", at)
        if line < 0:
            return None
        at = line + 2 + int(data[at + 1 : line]) + 2
        if at > len(data):
            return None
    return at
