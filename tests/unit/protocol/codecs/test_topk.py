"""Top-k: which elements, in which bytes, and bytes from anywhere."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from fl_queue.config import loading
from fl_queue.config.run_config import RunConfig
from fl_queue.config.schema import UpdateSection
from fl_queue.errors import ConfigError, MessageError
from fl_queue.protocol.codecs import codec, topk
from fl_queue.protocol.manifest import Manifest, TensorSpec

ODD = 3 * 100_000 + 7


def vector(size: int) -> Manifest:
    return Manifest((TensorSpec("w", (size,), "parameter"),))


def decoded(name: str, values: np.ndarray) -> np.ndarray:
    manifest = vector(values.size)
    encoded = codec.encode(name, manifest, values.astype("<f4").tobytes(), 0)
    return np.frombuffer(codec.decode(name, manifest, encoded), np.float32)


def reference(values: np.ndarray, count: int) -> np.ndarray:
    """By a stable sort: largest magnitude first, of equals the smaller index."""
    kept = np.argsort(-np.abs(values), kind="stable")[:count]
    sparse = np.zeros_like(values)
    sparse[kept] = values[kept]
    return sparse


@pytest.mark.parametrize(
    ("fraction", "name"), [(0.01, "topk:0.01"), (1, "topk:1"), (0.1 + 0.2, "topk:0.3"), (1e-6, "topk:0.000001")]
)  # fmt: skip
def test_a_fraction_has_one_name(fraction: float, name: str) -> None:
    assert topk.name_of(fraction) == name
    assert topk.is_name(name)
    update = UpdateSection(codec="topk", fraction=fraction)
    assert codec.encoding(update) == name
    assert codec.encoding(replace(update, codec="int8")) == "int8"


@pytest.mark.parametrize(
    "name", ["topk", "topk:", "topk:0", "topk:0.0", "topk:1.0", "topk:0.10", "topk:2", "topk:0.0000001", "topk:1e-2", "topk:0.1\n"]
)  # fmt: skip
def test_other_names_are_none(name: str) -> None:
    assert not topk.is_name(name)
    with pytest.raises(MessageError):
        codec.encoded_nbytes(name, vector(5))


def test_the_size_is_that_of_its_entries_rounded_up() -> None:
    sizes = {0: 0, 1: 8, 100: 8, 101: 16, topk.BLOCK: 8 * 10486, topk.BLOCK + 1: 8 * 10487}
    assert {size: topk.nbytes("topk:0.01", size) for size in sizes} == sizes
    # Exact: 0.07 * 100 is more than 7 in floating point.
    assert topk.nbytes("topk:0.07", 100) == 56


@pytest.mark.parametrize("share", [0.001, 0.1, 1])
def test_the_largest_are_kept_as_they_are_and_the_rest_is_zero(share: float) -> None:
    rng = np.random.default_rng(3)
    # Few different magnitudes of either sign: ties everywhere.
    values = (rng.integers(-40, 41, ODD) / 8).astype(np.float32)
    count = -(-int(share * 1000) * ODD // 1000)
    found = decoded(topk.name_of(share), values)
    assert found.tobytes() == reference(values, count).tobytes()


def test_blocks_of_a_large_tensor_are_each_their_own_and_pieces_are_the_whole() -> None:
    values = np.random.default_rng(4).standard_normal(topk.BLOCK + 1000).astype(np.float32)
    manifest = vector(values.size)
    (spec,) = manifest.tensors
    encoded = codec.encode("topk:0.001", manifest, values.tobytes(), 0)
    parts = [
        codec.encode_piece("topk:0.001", spec, start, values[start : start + topk.BLOCK], 0)
        for start in (0, topk.BLOCK)
    ]
    assert b"".join(parts) == encoded == b"".join(
        codec.encoded_pieces("topk:0.001", manifest, values.tobytes())
    )  # fmt: skip
    halves = [reference(values[: topk.BLOCK], 1049), reference(values[topk.BLOCK :], 1)]
    expected = np.concatenate(halves)
    assert decoded("topk:0.001", values).tobytes() == expected.tobytes()
    blocks = codec.DecodedBlocks("topk:0.001", manifest, encoded)
    assert b"".join(block.tobytes() for block in blocks(spec)) == expected.tobytes()
    with pytest.raises(ValueError, match="inside a block of 1048576"):
        codec.encode_piece("topk:0.001", spec, 256, values[256:], 0)


def test_what_is_broken_is_still_seen_to_be() -> None:
    values = np.full(100, 3e38, np.float32)
    values[40], values[60], values[80] = np.inf, np.nan, -np.inf
    found = decoded("topk:0.02", values)
    assert np.isnan(found[60])
    assert found[40] == np.inf
    assert not found[80]


def hostile(indices: list[int], size: int = 100) -> bytes:
    values = np.ones(len(indices), "<f4")
    return np.array(indices, "<u4").tobytes() + values.tobytes()


@pytest.mark.parametrize(
    "indices", [[5, 4], [5, 5], [0, 100], [7, 2**32 - 1], [2**31, 2**31 + 1], [99, 0]]
)
def test_indices_that_do_not_ascend_or_are_beyond_the_tensor_are_refused(
    indices: list[int],
) -> None:
    manifest, bad = vector(100), hostile(indices)
    for read in (codec.DecodedBlocks, codec.LazyDecodedTensors, codec.decode, codec.split):
        with pytest.raises(
            MessageError, match=r"codec topk:0\.02: indices do not ascend below 100"
        ):
            read("topk:0.02", manifest, bad)
    # Even what was not checked writes nowhere else.
    out = np.zeros(100, np.float32)
    try:
        codec.decode_tensor("topk:0.02", manifest.tensors[0], bad, out)
    except MessageError as exc:
        assert "do not ascend" in exc.reason  # noqa: PT017
    assert np.count_nonzero(out) <= 2


@pytest.mark.parametrize("count", [0, 1, 3])
def test_more_or_fewer_entries_than_the_run_wants_are_refused(count: int) -> None:
    with pytest.raises(MessageError, match=f"body has {8 * count} bytes, not 16"):
        codec.DecodedBlocks("topk:0.02", vector(100), hostile(list(range(count))))


def test_a_few_bytes_never_become_more_than_a_block_of_the_tensor() -> None:
    manifest = vector(5_000_000)
    encoded = codec.encode("topk:0.000001", manifest, bytes(manifest.nbytes), 0)
    assert len(encoded) == 8 * sum(2 if n == topk.BLOCK else 1 for n in _lengths(5_000_000))
    tracemalloc.start()
    try:
        total = sum(
            block.size
            for block in codec.DecodedBlocks("topk:0.000001", manifest, encoded)(
                manifest.tensors[0]
            )
        )
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert total == 5_000_000
    assert peak < 2_000_000


def _lengths(size: int) -> list[int]:
    return [min(topk.BLOCK, size - start) for start in range(0, size, topk.BLOCK)]


def test_settings_that_cannot_work_are_refused_with_the_fix() -> None:
    def load(*overrides: str) -> RunConfig:
        return loading.load(None, overrides, environ={})

    assert load("update.codec=topk", "update.error_feedback=true").update.fraction == 0.01
    with pytest.raises(ConfigError, match=r"update.error_feedback.*float32 leaves nothing out"):
        load("update.error_feedback=true")
    for fraction in ("0", "1.5", "0.0000001"):
        with pytest.raises(ConfigError, match=r"update\.fraction"):
            load("update.codec=topk", f"update.fraction={fraction}")
    for strategy in ("scaffold", "feddyn"):
        with pytest.raises(ConfigError, match=r"update\.codec.*needs updates as they were made"):
            load(
                f"aggregation.strategy={strategy}",
                "aggregation.weighting=uniform",
                "update.codec=topk",
            )
    with pytest.raises(ConfigError, match=r"model\.codec"):
        load("model.codec=topk")
