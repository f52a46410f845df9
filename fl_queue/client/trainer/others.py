"""The other processes of a trainer with several devices, as the first one sees them. No torch here."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from fl_queue.client.trainer.protocol import Channel, Message
from fl_queue.errors import MessageError

if TYPE_CHECKING:
    from fl_queue.client.trainer.serve import Reply


class Others:
    """
    The other processes of a group, as the first one sees them.

    Args:
        links: To each of them; default: there are none.
        takes: Whether they take part in a request.
    """

    def __init__(
        self,
        links: Sequence[socket.socket] = (),
        takes: Callable[[dict[str, Any]], bool] = lambda body: True,
    ) -> None:
        self._channels, self._takes = [Channel(link) for link in links], takes
        self._is_asked = False

    def ask(self, request: Message) -> None:
        """Pass a request on, where they take part."""
        self._is_asked = bool(self._channels) and self._takes(request.body)
        if self._is_asked:
            for channel in self._channels:
                channel.send(request)

    def joined(self, request: Message, reply: Reply) -> Reply:
        """
        The reply of all of them: the first one's, once each of the others has come to the same end.

        Raises:
            MessageError: One of them has come to another.
        """
        if not self._is_asked or reply.is_last:
            return reply
        for channel in self._channels:
            body = _received(channel, "answer", request.id)
            if body.get("outcome") != reply.body.get("outcome"):
                raise MessageError("the processes of --devices differ in their answers")
        return reply

    def tidied(self, request: Message) -> tuple[list[str], int]:
        """What the job has changed in them, and their private memory, bytes."""
        changed: list[str] = []
        nbytes = 0
        if self._is_asked:
            for channel in self._channels:
                idle = _received(channel, "idle", request.id)
                changed += idle["changed"]
                nbytes += idle["private_bytes"]
        return changed, nbytes


def _received(channel: Channel, kind: str, request: str) -> dict[str, Any]:
    message = channel.receive()
    if message is None or (message.kind, message.id) != (kind, request):
        raise MessageError("another process of --devices ended")
    return message.body
