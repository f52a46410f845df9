"""Error feedback against plain numpy, and what is kept when rounds are retried or come late."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fl_queue.client import client_state
from fl_queue.client.client_state import AcceptedUpdate, ClientStateFolder
from fl_queue.protocol import tensor_layout
from fl_queue.protocol.codecs import codec, error_feedback
from fl_queue.protocol.codecs.error_feedback import Piece
from fl_queue.protocol.manifest import Manifest, TensorSpec
from fl_queue.protocol.tensor_layout import Tensor
from fl_queue.strategies.layouts import RESIDUAL, state_manifest

MANIFEST = Manifest(
    (
        TensorSpec("a", (40, 30), "parameter"),
        TensorSpec("b", (7,), "parameter"),
        TensorSpec("mean", (3,), "float_buffer"),
        TensorSpec("n", (), "integer_buffer"),
    )
)
LAYOUT = client_state.layout({RESIDUAL: state_manifest(MANIFEST)})
LOSSY = ("topk:0.05", "int8", "bfloat16")
SEED = 9
MANIFEST_SIZES = {spec.name: spec.size for spec in MANIFEST.tensors}


def update(number: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(number)
    tensors = {s.name: rng.standard_normal(s.shape).astype(np.float32) for s in MANIFEST.tensors}
    return tensors | {"n": np.array(number)}


def pieces(tensors: dict[str, np.ndarray]) -> Iterator[Piece]:
    for spec in MANIFEST.tensors:
        yield spec, 0, tensor_layout.little_endian(tensors[spec.name].reshape(-1))


class Client:
    """What ``client.round_job`` does with an update, and the folder where it keeps what it owes."""

    def __init__(self, folder: Path, encoding: str) -> None:
        self.folder, self.encoding = folder, encoding
        self.accepted: AcceptedUpdate | None = None

    def answer(self, number: int, tensors: dict[str, np.ndarray]) -> tuple[AcceptedUpdate, bytes]:
        """Keep the state, and make the body of an update; nothing is accepted yet."""
        kept = ClientStateFolder(self.folder, "run-1", "a").load(number, self.accepted, LAYOUT)
        residual = kept.state.get(RESIDUAL, {})
        corrected = list(error_feedback.corrected(pieces(tensors), residual))
        body = b"".join(
            bytes(codec.encode_piece(self.encoding, spec, start, values, SEED))
            for spec, start, values in corrected
        )
        made = AcceptedUpdate(number, tensor_layout.body_digest(body))
        owed = error_feedback.next_residual(self.encoding, corrected, SEED)
        ClientStateFolder(self.folder, "run-1", "a").write(made, LAYOUT, owed)
        return made, body

    def owes(self, before: int = 100) -> dict[str, Tensor]:
        kept = ClientStateFolder(self.folder, "run-1", "a").load(before, self.accepted, LAYOUT)
        return {name: array.copy() for name, array in kept.state[RESIDUAL].items()}


def sent(encoding: str, body: bytes) -> dict[str, np.ndarray]:
    whole = codec.decode(encoding, MANIFEST, body)
    return {name: array.copy() for name, array in tensor_layout.views(MANIFEST, whole).items()}


def largest_alone(values: np.ndarray, share: float) -> np.ndarray:
    """Top-k from its definition, in float64."""
    flat = values.reshape(-1)
    count = int(np.ceil(share * flat.size - 1e-9))
    kept = sorted(range(flat.size), key=lambda i: (-abs(flat[i]), i))[:count]
    sparse = np.zeros_like(flat)
    sparse[kept] = flat[kept]
    return sparse.reshape(values.shape)


def test_top_k_with_error_feedback_is_that_of_the_paper(tmp_path: Path) -> None:
    client = Client(tmp_path, "topk:0.05")
    owed = {name: np.zeros(MANIFEST.tensors[i].shape) for i, name in enumerate("ab")}
    for number in range(1, 8):
        tensors = update(number)
        made, body = client.answer(number, tensors)
        client.accepted = made
        found = sent("topk:0.05", body)
        for name in "ab":
            whole = tensors[name].astype(np.float64) + owed[name]
            expected = largest_alone(whole, 0.05)
            owed[name] = whole - expected
            assert np.abs(found[name] - expected).max() < 1e-6
            assert np.abs(client.owes()[name] - owed[name]).max() < 1e-6
        # Buffers are neither sparse nor owed.
        assert found["mean"].tobytes() == tensors["mean"].tobytes()
        assert found["n"] == number
        assert client.owes().keys() == set("ab")


@pytest.mark.parametrize("encoding", LOSSY)
def test_what_was_sent_and_what_is_owed_are_what_was_made(tmp_path: Path, encoding: str) -> None:
    client = Client(tmp_path, encoding)
    made_sum = {name: np.zeros(update(0)[name].shape) for name in "ab"}
    sent_sum = {name: array.copy() for name, array in made_sum.items()}
    for number in range(1, 6):
        tensors = update(number)
        client.accepted, body = client.answer(number, tensors)
        for name in "ab":
            made_sum[name] += tensors[name]
            sent_sum[name] += sent(encoding, body)[name]
    for name, owed in client.owes().items():
        assert np.abs(owed).max() > 0
        assert np.abs(sent_sum[name] + owed - made_sum[name]).max() < 1e-5


@pytest.mark.parametrize("encoding", LOSSY)
def test_a_round_that_was_retried_abandoned_or_late_changes_nothing(
    tmp_path: Path, encoding: str
) -> None:
    calm, disturbed = Client(tmp_path / "calm", encoding), Client(tmp_path / "other", encoding)
    for number in (1, 2, 3):
        calm.accepted, _ = calm.answer(number, update(number))
    expected = calm.answer(9, update(9))

    disturbed.accepted, first = disturbed.answer(1, update(1))
    assert disturbed.answer(2, update(2))[1] != first
    # The same attempt once more, as a killed worker's successor makes it,
    disturbed.accepted, _ = disturbed.answer(2, update(2))
    # a round with another outcome of training, which is abandoned,
    disturbed.answer(4, update(77))
    # and one that comes late: its update is not in the version.
    disturbed.answer(5, update(78))
    disturbed.accepted, _ = disturbed.answer(6, update(3))
    assert disturbed.answer(9, update(9)) == expected


def test_an_update_that_cannot_be_accepted_keeps_the_residual(tmp_path: Path) -> None:
    client = Client(tmp_path, "topk:0.05")
    client.accepted, _ = client.answer(1, update(1))
    before = client.owes(2)
    broken = update(2)
    broken["a"][3, 4] = np.nan
    _, body = client.answer(2, broken)
    assert np.isnan(sent("topk:0.05", body)["a"][3, 4])  # So the aggregator refuses it.
    assert {n: a.tobytes() for n, a in client.owes(3).items()} == {
        n: a.tobytes() for n, a in before.items()
    }


@pytest.mark.parametrize("encoding", LOSSY)
def test_what_is_owed_does_not_depend_on_the_factor_of_its_round(encoding: str) -> None:
    owed: dict[str, np.ndarray] = {}
    arrived = {name: np.zeros(MANIFEST_SIZES[name]) for name in ("a", "b")}
    wanted = {name: np.zeros(MANIFEST_SIZES[name]) for name in ("a", "b")}
    for number, factor in enumerate((1.0, 1e-9, 3e7, 0.25)):
        tensors = update(number)
        scaled = [
            (spec, start, (values * np.float32(factor) if spec.kind == "parameter" else values))
            for spec, start, values in pieces(tensors)
        ]
        corrected = list(error_feedback.corrected(scaled, owed, factor))
        body = b"".join(
            bytes(codec.encode_piece(encoding, spec, start, values, SEED))
            for spec, start, values in corrected
        )
        left = list(error_feedback.next_residual(encoding, corrected, SEED, factor))
        owed = dict(zip(("a", "b"), left, strict=True))
        for name, values in sent(encoding, body).items():
            if name in arrived:
                arrived[name] += values.reshape(-1).astype(np.float64) / factor
                wanted[name] += tensors[name].reshape(-1)
    for name in arrived:
        np.testing.assert_allclose(arrived[name] + owed[name], wanted[name], atol=1e-5)


def test_an_update_that_counts_nothing_leaves_nothing_owed() -> None:
    zeros = [(spec, 0, values * 0) for spec, _, values in pieces(update(1))]
    left = list(error_feedback.next_residual("int8", zeros, SEED, 0.0))
    assert not any(values.any() for values in left)
