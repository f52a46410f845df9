"""Messages of trainers: read as they were sent, in pieces of any size; anything else is an error, and no more."""

from __future__ import annotations

import os
import socket
import struct
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_queue.client.trainer.protocol import (
    MAX_BYTES,
    Channel,
    FrameReader,
    Message,
    encode,
    new_id,
    receive_packet,
    send_packet,
)
from fl_queue.errors import MessageError

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip
messages = st.builds(
    Message,
    kind=st.sampled_from(["request", "progress", "answer", "idle"]),
    id=st.text("abc/0", max_size=40),
    body=st.dictionaries(st.text("abc", max_size=5), plain, max_size=4),
)


def frame(text: bytes) -> bytes:
    return struct.pack("<I", len(text)) + text


@settings(max_examples=30)
@given(st.lists(messages, max_size=3), st.data())
def test_messages_cut_anywhere_are_read_as_they_were_sent(
    sent: list[Message], data: st.DataObject
) -> None:
    stream = b"".join(encode(message) for message in sent)
    reader, found = FrameReader(), []
    while stream:
        cut = data.draw(st.integers(1, len(stream)))
        reader.add(stream[:cut])
        stream = stream[cut:]
        while (message := reader.next()) is not None:
            found.append(message)

    assert found == sent
    assert reader.is_empty


@given(st.binary(max_size=80))
def test_any_bytes_are_a_message_an_error_or_not_complete(stream: bytes) -> None:
    reader = FrameReader()
    reader.add(stream)
    with suppress(MessageError):
        assert reader.next() is None or stream


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"{", "not a message of a trainer"),
        (b"\xff", "not a message of a trainer"),
        (b"[" * 100_000, "not a message of a trainer"),
        (b"[]", "kind, id and body"),
        (b'{"kind":"answer","id":"a"}', "kind, id and body"),
        (b'{"kind":"answer","id":"a","body":{},"more":1}', "kind, id and body"),
        (b'{"kind":"order","id":"a","body":{}}', "kind is unknown"),
        (b'{"kind":["answer"],"id":"a","body":{}}', "kind is unknown"),
        (b'{"kind":"answer","id":1,"body":{}}', "id is no text"),
        (b'{"kind":"answer","id":"a","body":[]}', "body no object"),
        (b'{"kind":"answer","id":"a","body":{"loss":NaN}}', "NaN"),
    ],
)
def test_what_is_no_message_is_refused(text: bytes, reason: str) -> None:
    reader = FrameReader()
    reader.add(frame(text))
    with pytest.raises(MessageError, match=reason):
        reader.next()


def test_a_frame_that_is_too_long_is_refused_before_it_is_read() -> None:
    reader = FrameReader()
    reader.add(struct.pack("<I", MAX_BYTES + 1))
    with pytest.raises(MessageError, match="16777217 bytes"):
        reader.next()
    with pytest.raises(MessageError, match="at most 16777216 are sent"):
        encode(Message("request", "a", {"text": "x" * MAX_BYTES}))


def test_ids_name_their_job_and_differ() -> None:
    found = {new_id("site-1_demo-3f2a9c_1_0123abcd") for _ in range(100)}

    assert len(found) == 100
    assert all(len(name.removeprefix("site-1_demo-3f2a9c_1_0123abcd/")) == 16 for name in found)


def test_a_channel_ends_with_its_other_end() -> None:
    mine, other = socket.socketpair()
    with mine, other:
        Channel(other).send(Message("request", "a", {"do": "it"}))
        other.sendall(b"\x01\x00")
        other.shutdown(socket.SHUT_WR)
        channel = Channel(mine)

        assert channel.receive() == Message("request", "a", {"do": "it"})
        assert channel.receive() is None


def test_packets_bring_descriptors_that_programs_do_not_inherit() -> None:
    mine, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    read, write = os.pipe()
    with mine, other:
        send_packet(mine, {"fork": 1}, [write])
        packet = receive_packet(other)
        assert packet is not None
        os.write(packet.descriptors[0], b"x")

        assert packet.values == {"fork": 1}
        assert os.read(read, 1) == b"x"
        assert not os.get_inheritable(packet.descriptors[0])
        mine.close()
        assert receive_packet(other) is None
    for descriptor in (read, write, *packet.descriptors):
        os.close(descriptor)


@pytest.mark.parametrize("text", [b"{", b"[]", b'"fork"'])
def test_a_packet_that_is_no_object_is_refused_and_its_descriptors_are_closed(text: bytes) -> None:
    mine, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    read, write = os.pipe()
    with mine, other:
        socket.send_fds(mine, [text], [write])
        os.close(write)
        with pytest.raises(MessageError):
            receive_packet(other)
        assert os.read(read, 1) == b""  # The last writer is closed.
    os.close(read)
