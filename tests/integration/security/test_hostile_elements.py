"""Elements that lie, before a real aggregator: a reason each, no more memory than is allowed, and the round goes on."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from fl_queue import metrics
from fl_queue.aggregation import exact_sum
from fl_queue.config import loading
from fl_queue.coordinator.aggregator.intake import UpdateIntake
from fl_queue.coordinator.aggregator.open_round import OpenRound
from fl_queue.coordinator.rounds import lifecycle, runs
from fl_queue.errors import ChunksMissing
from fl_queue.protocol import message, tensor_layout
from fl_queue.protocol.header import Header
from fl_queue.protocol.manifest import Manifest, TensorSpec
from fl_queue.store import Incarnation, Store, keyspace
from tests.support.manual_run import ManualRun

pytestmark = pytest.mark.timeout(120)

SIZE = 1000
MOST = 24 << 20  # What the largest header may become, and the little that a test needs besides.
CHUNK = 64 * 1024


@pytest.fixture
def hand(store: Store, tmp_path: Path) -> ManualRun:
    return ManualRun(store, tmp_path, "ab", SIZE)


def raw(packed: bytes, number: int = 1) -> bytes:
    """An element with a header of any bytes."""
    return message.MAGIC + number.to_bytes(4, "little") + len(packed).to_bytes(4, "little") + packed


def honest(hand: ManualRun) -> Header:
    return hand.header("update", "a", hand.body("a"))


def fields(hand: ManualRun, **changes: Any) -> bytes:
    """An element whose header ``pack`` would refuse."""
    header = asdict(honest(hand)) | changes
    header["tensors"] = [list(entry) for entry in header["tensors"]]
    del header["members"], header["scalars"]
    return raw(msgpack.packb(header))


def with_body(hand: ManualRun, change: Callable[[np.ndarray], None]) -> bytes:
    body = bytearray(hand.body("a"))
    change(np.frombuffer(body, "<f4", offset=8))
    header = replace(honest(hand), body_digest=tensor_layout.body_digest(body))
    return message.pack(header, body)


def valued(value: float) -> Callable[[ManualRun], bytes]:
    def change(values: np.ndarray) -> None:
        values[7] = value

    return lambda hand: with_body(hand, change)


def tensors(hand: ManualRun, *entries: tuple[Any, ...]) -> bytes:
    return fields(hand, tensors=entries)


def chunked(hand: ManualRun, **changes: Any) -> bytes:
    return message.pack(replace(honest(hand), chunk_bytes=CHUNK, **changes), None)


def stored(hand: ManualRun, content: bytes) -> bytes:
    """An element whose only chunk is other than its header states."""
    header = honest(hand)
    name = keyspace.update_blob("a", hand.run, header.body_digest)
    hand.store.data.chunks.put(name, [memoryview(content)], 60)
    return chunked(hand)


def elsewhere(hand: ManualRun) -> bytes:
    return message.pack(replace(honest(hand), body_digest="0a" * 32), hand.body("a"))


W = ("w", "float32", [SIZE], 8, 4 * SIZE)
N = ("n", "int64", [1], 0, 8)
#: What is sent -> a word of the reason.
ATTACKS: dict[str, tuple[Callable[[ManualRun], bytes], str]] = {
    "header of arrays": (lambda hand: raw(b"\x93" * (1 << 20)), "not msgpack"),
    "header of nothings": (lambda hand: raw(b"\xdc\x40\x00" + b"\xc0" * 16384), "not a map"),
    "header of lists": (
        lambda hand: raw(b"\xdc\x40\x00" + (b"\xdc\x00\x40" + bytes(64)) * 16384),
        "values",
    ),
    "array of 4 billion": (lambda hand: raw(b"\xdd\xff\xff\xff\xff"), "not msgpack"),
    "map of 4 billion": (lambda hand: raw(b"\xdf\xff\xff\xff\xff"), "not msgpack"),
    "text of 4 billion": (lambda hand: raw(b"\xdb\xff\xff\xff\xff"), "not msgpack"),
    "header cut off": (lambda hand: raw(b"\x80")[:-1], "cut off"),
    "header of 4 GB": (
        lambda hand: message.MAGIC + (1).to_bytes(4, "little") + b"\xff" * 4,
        "more than 4194304",
    ),
    "a key twice": (lambda hand: raw(b"\x82\xa1a\x01\xa1a\x02"), "duplicate key"),
    "a tensor twice": (lambda hand: tensors(hand, W, W), "occurs twice"),
    "deep nesting": (lambda hand: fields(hand, metrics={"loss_sum": [[[[[1]]]]]}), "nested deeper"),
    "body of an exabyte": (
        lambda hand: fields(hand, body_bytes=2**60, chunk_bytes=CHUNK),
        "chunks",
    ),
    "body of 32 GiB": (lambda hand: huge(hand), "(8589934592,)"),
    "shape beyond 64 bits": (
        lambda hand: tensors(hand, N, ("w", "float32", [2**62, 4], 8, 0)),
        "is not 0 bytes",
    ),
    "overlapping": (
        lambda hand: tensors(hand, N, ("w", "float32", [SIZE], 4, 4 * SIZE)),
        "overlap",
    ),
    "another dtype": (
        lambda hand: tensors(hand, N, ("w", "float64", [SIZE], 8, 8 * SIZE)),
        "dtype",
    ),
    "another kind's dtype": (
        lambda hand: message.pack(
            replace(
                honest(hand), tensors=(_entry(N), _entry(("w", "int64", [SIZE // 2], 8, 4 * SIZE)))
            ),
            hand.body("a"),
        ),
        "tensor 'w'",
    ),
    "NaN": (valued(float("nan")), "w"),
    "infinity": (valued(float("inf")), "w"),
    "beyond the range": (valued(65.0), "w"),
    "digest of something else": (elsewhere, "digest"),
    "a group with superscripts": (lambda hand: lying_group(hand), "no group"),
    "a name that moves the cursor": (
        lambda hand: fields(hand, client="\x1b[2J"),
        "cannot be shown",
    ),
    "a reason that moves the cursor": (
        lambda hand: failure(hand, "\x1b[2Jgone\n\x07"),
        "\N{REPLACEMENT CHARACTER}[2Jgone ",
    ),
    "missing chunk": (chunked, "is not on the data server; asked again"),
    "truncated chunk": (lambda hand: stored(hand, hand.body("a")[:-1]), "asked again"),
    "longer chunk": (lambda hand: stored(hand, hand.body("a") + b"x"), "asked again"),
    "chunk changed afterwards": (lambda hand: stored(hand, bytes(8 + 4 * SIZE)), "digest"),
}


def _entry(raw: tuple[Any, ...]) -> message.TensorEntry:
    name, dtype, shape, offset, nbytes = raw
    return message.TensorEntry(name, dtype, tuple(shape), offset, nbytes)


def failure(hand: ManualRun, reason: str) -> bytes:
    return message.pack(
        replace(honest(hand), kind="failure", reason=reason, tensors=(), body_bytes=0, body_digest=tensor_layout.body_digest(b"")),
        None,
    )  # fmt: skip


def huge(hand: ManualRun) -> bytes:
    """One that consists with itself."""
    size = 2**33
    entry = message.TensorEntry("w", "float32", (size,), 0, 4 * size)
    return message.pack(
        replace(honest(hand), tensors=(entry,), body_bytes=4 * size, chunk_bytes=1 << 22), None
    )


def lying_group(hand: ManualRun) -> bytes:
    header = asdict(replace(honest(hand), kind="group", client="group-²", tensors=()))
    member = {name: header[name] for name in ("num_examples", "metrics", "train_metrics", "environment", "train_s", "body_bytes", "body_digest", "token")}  # fmt: skip
    member |= {"client": "a", "status": "received", "reason": "", "weight": 1, "norm": 0.0}
    member["scalars"] = {}
    header |= {"members": [member], "body_bytes": 0, "body_digest": tensor_layout.body_digest(b"")}
    del header["scalars"]
    return raw(msgpack.packb(header))


def peak_of(act: Callable[[], object]) -> int:
    """Bytes that Python and numpy had allocated at most, beyond what there was."""
    tracemalloc.start()
    try:
        act()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def reason_of(hand: ManualRun, intake: UpdateIntake) -> str:
    """What is recorded of the next element: in its client's receipt, or in the counts of the refused."""
    before = intake.receipts.get("a")
    counted = hand.store.control.rejections.of_round(hand.run, hand.round.number)
    hand.take(intake, 1)
    receipt = intake.receipts.get("a")
    if receipt is not None and receipt is not before:
        assert not receipt.is_in
        return receipt.reason
    now = hand.store.control.rejections.of_round(hand.run, hand.round.number)
    (changed,) = (who for who in now if now[who] != counted.get(who))
    return now[changed].reason


def test_every_lie_gets_a_reason_and_little_memory_and_the_round_is_committed(
    hand: ManualRun,
) -> None:
    intake = hand.intake()
    exact_sum.warm_up()  # What numba takes once is none of theirs.
    reasons: dict[str, str] = {}
    peaks: dict[str, int] = {}
    for name, (make, _) in ATTACKS.items():
        hand.store.data.results.push(hand.run, make(hand))
        peaks[name] = peak_of(lambda name=name: reasons.update({name: reason_of(hand, intake)}))

    assert {
        name: reasons[name] for name, (_, word) in ATTACKS.items() if word not in reasons[name]
    } == {}
    assert {name: peak for name, peak in peaks.items() if peak > MOST} == {}
    assert intake.received() == 0
    hand.update("a")
    hand.update("b")
    assert hand.work() == "committed: 2 of 2 updates in"
    assert hand.record.accepted.keys() == {"a", "b"}


def test_a_metric_that_cannot_be_used_is_lost_and_neither_the_update_nor_what_others_report(
    hand: ManualRun,
) -> None:
    good = {"num_examples": 4, "loss_sum": 2.0, "confusion": [[3, 1], [0, 0]]}
    bad = {**good, "loss_sum": float("nan"), "rare_sum": -1.0}
    for client, found in (("a", bad), ("b", good)):
        header = replace(hand.header("update", client, hand.body(client)), metrics=found)
        hand.store.data.results.push(
            hand.run,
            message.pack(
                replace(header, train_metrics=found, token=f"token of {client}"), hand.body(client)
            ),
        )

    assert hand.work() == "committed: 2 of 2 updates in"
    for merged in (hand.record.validation, hand.record.train):
        assert metrics.finish(merged) == {"loss": 0.5, "accuracy": 0.75, "f1": 0.0, "rare": -0.25}
        assert metrics.told_by(merged) == {
            "loss": (1, 4), "accuracy": (2, 8), "f1": (2, 8), "rare": (1, 4)
        }  # fmt: skip
    receipt = hand.store.control.receipts.of_round(hand.run, 1)["a"]
    assert receipt.status == "accepted"
    assert receipt.reason == "left out: metrics.loss_sum: is not a finite number"
    assert hand.record.client_validation["a"].keys() == {"accuracy", "f1", "rare"}


# Declared sizes


def opened(store: Store, folder: Path, *overrides: str) -> UpdateIntake:
    """An aggregator at a round that wants version 0 of ``a``."""
    store.control.leases.hold(keyspace.client_holder("a"), "t", 60, {})
    store.control.redis.hset(keyspace.CLOCK, "settling_s", 0)
    loaded = loading.load("mnist-3v7", ("round.cohort=1", *overrides), {})
    run = runs.start_run(store, "first", loaded, 1).run_id
    lifecycle.advance(store, run)
    current = store.control.rounds.get(run, 0)
    assert current is not None
    fence = store.control.rounds.claim(
        run, 0, store.control.rounds.jobs(run, 0)["aggregator"]["job"], "t"
    )
    store.data.taken.own(run, fence, "t")
    incarnation = Incarnation(run, current.number, fence, "t")
    return UpdateIntake(OpenRound(store, incarnation, current, loaded), folder)


def first_version(intake: UpdateIntake, size: int) -> bytes:
    manifest = Manifest((TensorSpec("w", (size,), "parameter"),))
    header = Header(
        kind="model",
        run=intake.run,
        round=0,
        client="a",
        token="t",
        manifest=manifest.to_json(),
        tensors=tensor_layout.entries(manifest),
        body_bytes=4 * size,
        body_digest="0a" * 32,
        chunk_bytes=1 << 22,
    )
    return message.pack(header, None)


def test_a_first_version_that_is_not_there_takes_no_memory(store: Store, tmp_path: Path) -> None:
    intake = opened(store, tmp_path)
    job = store.control.rounds.job(intake.run, 0, "a")
    # One that waits in the queue would not be replaced: it pushes anyway.
    store.control.redis.hset(f"rq:job:{job['job']}", "status", "started")

    assert peak_of(lambda: intake.process(first_version(intake, 2**31))) < MOST
    assert intake.receipts == {}
    assert store.control.rounds.job(intake.run, 0, "a")["attempt"] == job["attempt"] + 1


def test_a_first_version_larger_than_the_config_allows_is_refused(
    store: Store, tmp_path: Path
) -> None:
    intake = opened(store, tmp_path, "model.max_bytes=1000")

    intake.process(first_version(intake, 251))

    assert intake.receipts["a"].status == "invalid"
    assert "1004 bytes is more than 1000; raise model.max_bytes" in intake.receipts["a"].reason


@pytest.mark.parametrize("length", [1, 11, 32 << 20])
def test_of_a_chunk_of_another_length_no_more_is_fetched(store: Store, length: int) -> None:
    name = keyspace.update_blob("a", "run-1", "d1")
    store.data.chunks.put(name, [memoryview(bytes(length))], 60)

    def fetch() -> None:
        with pytest.raises(ChunksMissing):
            store.data.chunks.get(name, 10, CHUNK)
        with pytest.raises(ChunksMissing):
            store.data.chunks.check(name, 10, CHUNK)

    assert peak_of(fetch) < 1 << 20


@pytest.mark.parametrize(
    "text",
    [
        '{"tensors":[{"name":"w","shape":[1e999],"kind":"parameter"}],"aliases":{}}',
        '{"tensors":[{"name":"w","shape":[1.0],"kind":"parameter"}],"aliases":{}}',
        '{"tensors":[{"name":"w","shape":[true],"kind":"parameter"}],"aliases":{}}',
        '{"tensors":[{"name":"w","shape":["1"],"kind":"parameter"}],"aliases":{}}',
        '{"tensors":[{"name":"w","shape":[' + "1," * 40 + '1],"kind":"parameter"}],"aliases":{}}',
        '{"tensors":[{"name":"w","shape":[' + "9" * 4000 + '],"kind":"parameter"}],"aliases":{}}',
        '{"tensors":[{"name":"w","shape":[1],"kind":["parameter"]}],"aliases":{}}',
        '{"tensors":[],"aliases":{"a":"\\ud800"}}',
        '{"tensors":[],"aliases":NaN}',
        '{"tensors":' + "[" * 100_000 + "]" * 100_000 + ',"aliases":{}}',
    ],
    ids=[
        "infinite",
        "fraction",
        "bool",
        "text",
        "dimensions",
        "huge",
        "kind",
        "half",
        "NaN",
        "deep",
    ],
)
def test_a_first_version_with_a_manifest_that_is_none_is_refused(
    store: Store, tmp_path: Path, text: str
) -> None:
    intake = opened(store, tmp_path)
    header, _ = message.unpack(first_version(intake, 1), max_body_bytes=1 << 20)

    intake.process(message.pack(replace(header, manifest=text), None))

    assert intake.receipts["a"].status == "invalid"
    assert "manifest" in intake.receipts["a"].reason
