"""The wire format, byte by byte: a change here is another format version."""

from __future__ import annotations

import numpy as np

from fl_queue.protocol import message, tensor_layout
from fl_queue.protocol.header import Header
from fl_queue.protocol.manifest import Manifest, TensorSpec

MANIFEST = Manifest((TensorSpec("n", (), "integer_buffer"), TensorSpec("w", (2, 1), "parameter")))
TENSORS = {"n": np.array(258, np.int64), "w": np.array([[1.0], [-2.5]], np.float32)}
BODY = bytes.fromhex("02010000000000000000803f000020c0")
DIGEST = "d83871885ebec48457bf0257c612d5ae6ab8c2920a39581b9a792651495dc3de"
HEADER = (
    b"\xde\x00\x13"
    b"\xa4kind\xa6update"
    b"\xa3run\xabdemo-3f2a9c"
    b"\xa5round\xcd\x01\x02"
    b"\xa6client\xa1a"
    b"\xacbase_version\x02"
    b"\xabbase_digest\xa0"
    b"\xa5token\xa1t"
    b"\xacnum_examples\xcd\x02X"
    b"\xa7metrics\x81\xa4loss\xcb?\xe0\x00\x00\x00\x00\x00\x00"
    b"\xadtrain_metrics\x80"
    b"\xabenvironment\x80"
    b"\xa7train_s\xcb?\xf0\x00\x00\x00\x00\x00\x00"
    b"\xa6reason\xa0"
    b"\xa8manifest\xa0"
    b"\xa7tensors\x92\x95\xa1n\xa5int64\x90\x00\x08\x95\xa1w\xa7float32\x92\x02\x01\x08\x08"
    b"\xa5codec\xa7float32"
    b"\xaabody_bytes\x10"
    b"\xabbody_digest\xd9@d83871885ebec48457bf0257c612d5ae6ab8c2920a39581b9a792651495dc3de"
    b"\xabchunk_bytes\x00"
)


def header() -> Header:
    return Header(
        kind="update",
        run="demo-3f2a9c",
        round=258,
        client="a",
        base_version=2,
        token="t",
        num_examples=600,
        metrics={"loss": 0.5},
        train_s=1.0,
        tensors=tensor_layout.entries(MANIFEST),
        body_bytes=len(BODY),
        body_digest=DIGEST,
    )


def test_a_two_tensor_body_is_these_bytes() -> None:
    body = tensor_layout.encode_body(MANIFEST, TENSORS)
    assert bytes(body) == BODY
    assert tensor_layout.body_digest(body) == DIGEST


def test_an_element_is_these_bytes() -> None:
    length = bytes([len(HEADER) % 256, len(HEADER) // 256, 0, 0])
    expected = b"FLQ1" + b"\x02\x01\x00\x00" + length + HEADER + BODY
    assert message.pack(header(), BODY) == expected


def test_these_bytes_are_understood() -> None:
    length = len(HEADER).to_bytes(4, "little")
    element = b"FLQ1" + b"\x02\x01\x00\x00" + length + HEADER + BODY
    found, body = message.unpack(element, max_body_bytes=16)
    assert found == header()
    assert bytes(body) == BODY
