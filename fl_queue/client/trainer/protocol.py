"""
Messages between a worker, its fork server and its trainers.

A message of a *job socket* (stream) is a frame: 4 bytes length, little-endian, and a JSON object
``{"kind", "id", "body"}`` of at most 16 MiB. ``id`` is the RQ job's id and a nonce of 64 bits, so an answer
belongs to one question. A message of the *control socket* (SOCK_SEQPACKET) is one packet with a JSON object and
file descriptors. Nothing is unpickled: a task's own code can write to the socket of its trainer.
No Redis and no torch here.
"""

from __future__ import annotations

import os
import secrets
import socket
import struct
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from fl_queue.common import safe_json
from fl_queue.errors import MessageError

#: Longest message of a job socket, bytes.
MAX_BYTES = 16 * 2**20
#: Longest packet of a control socket, bytes.
MAX_PACKET = 4096
#: Exit status of a fork server whose files are of another version than its worker.
EXIT_OTHER_VERSION = 76
#: Of a message's id, without the job's.
_NONCE_BYTES = 8
_LENGTH = struct.Struct("<I")
_READ_BYTES = 1 << 18
_MAX_ID = 256

Kind = Literal["request", "progress", "answer", "idle"]
_KINDS: tuple[Kind, ...] = ("request", "progress", "answer", "idle")


@dataclass(frozen=True)
class Message:
    """
    A message of a job socket.

    Args:
        kind: What it is.
        id: Of the request that it belongs to.
        body: Plain values.
    """

    kind: Kind
    id: str
    body: dict[str, Any]


def new_id(job: str) -> str:
    """Id of a request for a job: nothing that was sent before can be taken for its answer."""
    return f"{job}/{secrets.token_hex(_NONCE_BYTES)}"


def encode(message: Message) -> bytes:
    """
    A frame.

    Raises:
        MessageError: It is longer than ``MAX_BYTES``.
    """
    text = safe_json.dumps({"kind": message.kind, "id": message.id, "body": message.body}).encode()
    if len(text) > MAX_BYTES:
        raise MessageError(f"a message of {len(text)} bytes; at most {MAX_BYTES} are sent")
    return _LENGTH.pack(len(text)) + text


class FrameReader:
    """Messages out of a stream of bytes that comes in pieces of any size."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left over: no message and no part of one."""
        return not self._buffer

    def add(self, data: bytes) -> None:
        """Take more bytes of the stream."""
        self._buffer += data

    def next(self) -> Message | None:
        """
        The next message; None while it is not there as a whole.

        Raises:
            MessageError: It is too long, no JSON, or no message; the stream cannot be used any more.
        """
        if len(self._buffer) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._buffer)
        # Before it is read: a foreign length must not fill the memory.
        if length > MAX_BYTES:
            raise MessageError(f"a message of {length} bytes; at most {MAX_BYTES} are read")
        end = _LENGTH.size + length
        if len(self._buffer) < end:
            return None
        text = bytes(self._buffer[_LENGTH.size : end])
        del self._buffer[:end]
        return _message(safe_json.loads(text, "a message of a trainer"))


def _message(value: Any) -> Message:
    if not isinstance(value, dict) or value.keys() != {"kind", "id", "body"}:
        raise MessageError("not a message of a trainer: its fields are not kind, id and body")
    kind, name, body = value["kind"], value["id"], value["body"]
    if kind not in _KINDS:
        raise MessageError("not a message of a trainer: its kind is unknown")
    if not isinstance(name, str) or len(name) > _MAX_ID or not isinstance(body, dict):
        raise MessageError("not a message of a trainer: id is no text, or body no object")
    return Message(kind, name, body)


class Channel:
    """
    One end of a job socket that is waited for (a trainer's).

    Args:
        connection: A blocking stream socket; belongs to this object.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._reader = FrameReader()

    def send(self, message: Message) -> None:
        """Send a message. Raises MessageError (too long), OSError (the other end is gone)."""
        self._connection.sendall(encode(message))

    def receive(self) -> Message | None:
        """The next message; None when the other end is closed. Raises MessageError, OSError."""
        while (message := self._reader.next()) is None:
            data = self._connection.recv(_READ_BYTES)
            if not data:
                return None
            self._reader.add(data)
        return message


class Packet(NamedTuple):
    """A message of a control socket, and the file descriptors that came with it; they belong to its reader."""

    values: dict[str, Any]
    descriptors: list[int]


def send_packet(
    connection: socket.socket,
    values: Mapping[str, Any],
    descriptors: Sequence[int] = (),
    flags: int = 0,
) -> None:
    """
    Send a message over a control socket.

    Args:
        flags: Of ``sendmsg``.

    Raises:
        OSError: The other end is gone, or (``MSG_DONTWAIT``) has not read what was sent before.
    """
    data = safe_json.dumps(dict(values)).encode()
    rights = array("i", descriptors)
    # socket.send_fds of Python 3.11 takes flags, and leaves them out.
    connection.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)], flags)


def receive_packet(connection: socket.socket) -> Packet | None:
    """
    The next message of a control socket; None when the other end is closed.

    Raises:
        MessageError: It is no JSON object, or was cut.
    """
    data, descriptors, flags, _ = socket.recv_fds(connection, MAX_PACKET, 1)
    for descriptor in descriptors:  # Programs that a task starts must not have them.
        os.set_inheritable(descriptor, False)
    if not data and not descriptors:
        return None
    try:
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise MessageError("a packet that is too long")
        values = safe_json.loads(data, "a packet of a fork server")
        if not isinstance(values, dict):
            raise MessageError("not a packet of a fork server: it is no object")
    except MessageError:
        for descriptor in descriptors:
            os.close(descriptor)
        raise
    return Packet(values, descriptors)
