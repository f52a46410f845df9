"""Encoded bodies, byte by byte: a change here is another wire format."""

from __future__ import annotations

import numpy as np
import pytest

from fl_queue.protocol import tensor_layout
from fl_queue.protocol.codecs import codec
from fl_queue.protocol.manifest import Manifest, TensorSpec

MANIFEST = Manifest(
    (
        TensorSpec("mean", (1,), "float_buffer"),
        TensorSpec("n", (), "integer_buffer"),
        TensorSpec("w", (2, 4), "parameter"),
    )
)
TENSORS = {
    "mean": np.array([0.1], np.float32),
    "n": np.array(258, np.int64),
    "w": np.array([[1.0, -0.25, 0.1, 1e-3], [0.0, -1.27, 0.3, 0.005]], np.float32),
}
BUFFERS = "cdcccc3d0201000000000000"
ENCODED = {
    "float32": "0000803f000080becdcccc3d6f12833a000000005c8fa2bf9a99993e0ad7a33b",
    "bfloat16": "803f80becd3d833a0000a3bf9a3ea43b",
    # The scale is 0.01. 0.001 and 0.005 are 0.1 and 0.5 of it: rounded down and up with this seed.
    "int8": "0ad7233c64e70a0000811e01",
    # Two of eight: elements 0 and 5.
    "topk:0.25": "00000000050000000000803f5c8fa2bf",
}


@pytest.mark.parametrize("name", ENCODED)
def test_a_body_of_three_tensors_is_these_bytes(name: str) -> None:
    encoded = codec.encode(name, MANIFEST, tensor_layout.encode_body(MANIFEST, TENSORS), seed=7)
    assert encoded.hex() == BUFFERS + ENCODED[name]


def test_these_bytes_are_understood() -> None:
    in_bfloat16 = [1.0, -0.25, 0.10009765625, 0.00099945068359375]
    in_bfloat16 += [0.0, -1.2734375, 0.30078125, 0.0050048828125]
    in_int8 = np.array([100, -25, 10, 0, 0, -127, 30, 1]) * np.float32(0.01)
    expected = {"float32": TENSORS["w"], "bfloat16": in_bfloat16, "int8": in_int8}
    expected["topk:0.25"] = [1.0, 0, 0, 0, 0, -1.27, 0, 0]
    for name, values in expected.items():
        body = codec.decode(name, MANIFEST, bytes.fromhex(BUFFERS + ENCODED[name]))
        found = tensor_layout.views(MANIFEST, body)
        assert found["w"].tolist() == np.float32(values).reshape(2, 4).tolist()
        assert (found["mean"], found["n"]) == (TENSORS["mean"], 258)


def test_int8_blocks_of_256_and_of_what_is_left() -> None:
    manifest = Manifest((TensorSpec("w", (260,), "parameter"),))
    encoded = codec.encode("int8", manifest, (np.arange(260, dtype="<f4") / 4).tobytes(), seed=7)
    assert encoded[:12].hex() == "0281003f0000010102020304"
    assert encoded[256:].hex() == "7d7e7f7f0a85023f7d7e7f7f"
    assert tensor_layout.body_digest(encoded) == (
        "f2d562500f06d65108c9e32a2ff1d3e3a7d795d7086c0c1077e1c42a012f7e45"
    )
