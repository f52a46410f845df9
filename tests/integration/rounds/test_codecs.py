"""Whole runs whose updates and models travel encoded: same bits by sites, by a pool, and after a kill."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_queue import metrics
from fl_queue.coordinator.operations import controls, verification
from fl_queue.coordinator.rounds.runs import current_config
from fl_queue.models import retention, selection
from fl_queue.models.model_store import ModelStore
from fl_queue.protocol import message, tensor_layout, virtual_clients
from fl_queue.protocol.codecs import codec
from fl_queue.protocol.header import Header
from fl_queue.protocol.manifest import Manifest
from fl_queue.protocol.records import Receipt
from fl_queue.store import RoundState, Store, keyspace
from fl_queue.store.embedded.server_pair import start
from tests.support.federation import Federation, wait_for
from tests.support.manual_run import ManualRun
from tests.support.server_binaries import chosen_server

COUNT = 3
VIRTUAL = ("clients.kind=simulation", f"clients.count={COUNT}", "clients.processes=1")
INT8 = ("update.codec=int8",)
BOTH_WAYS = ("update.codec=bfloat16", "model.codec=bfloat16")
FEWEST = ("update.codec=int8", "model.codec=bfloat16")
TOPK = ("update.codec=topk", "update.fraction=0.1", "update.error_feedback=true")
#: All clients are still training when the last one has begun to.
SLOW = ("train.epochs=400", "run.rounds=1")
ENDLESS = ("train.epochs=1000000", "run.rounds=1")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory, no_process_left: None) -> Iterator[Federation]:
    """An aggregator, a pool process, and a site worker for each virtual client."""
    folder = tmp_path_factory.mktemp("codecs")
    with start(folder / "state", server=chosen_server()) as redis:
        made = Federation(redis, folder, 0, forked=True)
        try:
            made.start("pool", "--processes", "1")
            made.clients = virtual_clients.clients(COUNT)
            for client in made.clients:
                made.start(client)
            ready = 2 + 1 + COUNT
            wait_for("workers", lambda: len(made.store.control.workers.living()) == ready, 120)
            yield made
        finally:
            made.close()


def accuracy_of(mixed: Federation, run: str) -> float:
    """Of the last version, on the clients' validation data."""
    return metrics.finish(mixed.store.control.history.records(run)[-1].validation)["accuracy"]


def manifest_of(mixed: Federation, run: str) -> Manifest:
    found = mixed.store.control.versions.manifest(run)
    assert found is not None
    return found


def open_round(mixed: Federation, run: str) -> RoundState:
    wait_for("training", lambda: mixed.trained(run) == COUNT)
    current = mixed.store.control.rounds.get(run, 1)
    assert current is not None
    return current


@pytest.mark.parametrize("overrides", [INT8, BOTH_WAYS, FEWEST, TOPK], ids=" ".join)
def test_an_encoded_run_learns_and_has_the_same_bits_by_sites_and_by_a_pool(
    mixed: Federation, overrides: tuple[str, ...]
) -> None:
    plain = mixed.digests_of("same")
    first = mixed.begin("same", *overrides)
    assert mixed.finish(first).state == "completed"
    digests = mixed.free(first)
    for options in (overrides, (*overrides, *VIRTUAL)):
        run = mixed.begin("same", *options)
        assert mixed.finish(run).state == "completed"
        records = mixed.committed(run)
        assert mixed.free(run) == digests
        assert [r.accepted for r in records] == [r.accepted for r in mixed.committed(first)]

    assert digests[0] == plain[0]
    assert len({*digests, *plain}) == 2 * len(plain) - 1
    assert accuracy_of(mixed, first) > 0.8
    encoding = codec.encoding(current_config(mixed.store, first).update)
    size = codec.encoded_nbytes(encoding, manifest_of(mixed, first))
    receipts = mixed.store.control.receipts.of_round(first, 3).values()
    assert {receipt.nbytes for receipt in receipts} == {size}


@pytest.mark.parametrize(
    ("point", "again", "overrides"),
    [("outbox.written", 0, FEWEST), ("client.trained", 1, FEWEST), ("client.trained", 1, TOPK)],
)
def test_a_killed_client_encodes_the_same_bytes_again(
    mixed: Federation, point: str, again: int, overrides: tuple[str, ...]
) -> None:
    digests = mixed.digests_of("killed", *overrides)
    run = mixed.begin("killed", *overrides)
    mixed.reach(run, 2)
    fired = mixed.arm(point, "kill", "sim-1_")
    wait_for("the kill", fired.exists)
    state = mixed.finish(run)

    assert (state.state, mixed.free(run)) == ("completed", digests)
    assert mixed.trained(run) == 3 * COUNT + again


def test_chunks_of_an_encoded_update_are_put_together_again(mixed: Federation) -> None:
    digests = mixed.digests_of("whole", *FEWEST)
    run = mixed.begin("whole", *FEWEST, "redis.inline_bytes=0")

    assert (mixed.finish(run).state, mixed.free(run)) == ("completed", digests)


def test_encoded_updates_that_are_kept_verify(mixed: Federation) -> None:
    run = mixed.begin("kept", *FEWEST, "model.keep_updates=true")
    state = mixed.finish(run)
    folder = mixed.redis.state_dir
    verdicts = list(verification.verify(mixed.store, state, folder))

    assert [verdict.result for verdict in verdicts] == ["same"] * 3
    files = [*(folder / "updates" / run).rglob("*.update")]
    size = codec.encoded_nbytes("int8", manifest_of(mixed, run))
    assert len(files) == 3 * COUNT
    for file in files:
        header, body = message.unpack(file.read_bytes(), max_body_bytes=size)
        assert (header.codec, len(body)) == ("int8", size)


def bad_update(
    run: str, current: RoundState, manifest: Manifest, client: str, body: bytes, **changes: Any
) -> bytes:
    """An element in a client's name, as its own would be but for its body and some fields."""
    name = changes.get("codec", "int8")
    header = Header(
        kind="update",
        run=run,
        round=1,
        client=client,
        base_digest=current.base_digest,
        token="b" * 16,
        num_examples=5,
        tensors=codec.entries(name, manifest),
        codec=name,
        body_bytes=len(body),
        body_digest=tensor_layout.body_digest(body),
    )
    return message.pack(replace(header, **changes), body)


def test_malformed_encoded_updates_are_invalid_and_change_nothing(mixed: Federation) -> None:
    digests = mixed.digests_of("slow", *INT8, *SLOW)
    run = mixed.begin("slow", *INT8, *SLOW)
    current, manifest = open_round(mixed, run), manifest_of(mixed, run)
    first, second, third = mixed.clients
    size = codec.encoded_nbytes("int8", manifest)
    broken = np.full(size // 4 + 1, np.nan, np.float32).tobytes()[:size]  # Scales of NaN.
    plain = bytes(manifest.nbytes)
    for element in (
        bad_update(run, current, manifest, first, broken),
        bad_update(run, current, manifest, second, plain, codec="float32"),
        bad_update(run, current, manifest, third, bytes(size), body_digest="0" * 64),
    ):
        mixed.store.data.results.push(run, element)

    def judged() -> dict[str, Receipt]:
        receipts = mixed.store.control.receipts.of_round(run, 1)
        return receipts if len(receipts) == COUNT else {}

    receipts = wait_for("receipts", judged)
    state = mixed.finish(run)

    assert {receipt.status for receipt in receipts.values()} == {"invalid"}
    for client, word in ((first, "holds nan"), (second, "codec float32"), (third, "digest")):
        assert word in receipts[client].reason
    assert (state.state, mixed.free(run)) == ("completed", digests)


# Downloads


def test_what_a_client_sends_is_the_difference_to_what_it_received(mixed: Federation) -> None:
    # So small a step changes no parameter: only a difference to another base could be other than 0.
    # Without the evaluator, which shares the cache and fetches versions as they are.
    settings = ("train.learning_rate=1e-30", "run.evaluate_every=0")
    run = mixed.begin("still", "model.codec=bfloat16", *settings)
    mixed.finish(run)
    versions = mixed.store.control.versions.all(run)

    assert len({entry["digest"] for entry in versions.values()}) == 1
    download = versions[0]["download"]
    assert download != versions[0]["digest"]
    cached = {file.name for file in (mixed.redis.state_dir / "cache" / run).iterdir()}
    assert cached == {".lock", download}


def test_the_download_comes_back_from_the_checkpoint(mixed: Federation) -> None:
    run = mixed.begin("healed", *BOTH_WAYS, *ENDLESS)
    current, manifest = open_round(mixed, run), manifest_of(mixed, run)
    assert current.fetched == current.download != current.base_digest
    data = mixed.store.data
    data.chunks.drop(keyspace.model_blob(run, current.download), 1)
    wait_for(
        "its chunk",
        lambda: not data.chunks.are_missing(keyspace.model_blob(run, current.download), 1),
    )
    body = data.chunks.get(
        keyspace.model_blob(run, current.download),
        codec.encoded_nbytes("bfloat16", manifest),
        65536,
    )
    controls.cancel(mixed.store, "healed")

    assert tensor_layout.body_digest(body) == current.download
    assert mixed.finish(run).state == "cancelled"


def test_superseded_downloads_are_removed_with_their_versions(mixed: Federation) -> None:
    run = mixed.begin("pruned", *BOTH_WAYS)
    mixed.finish(run)
    versions = mixed.store.control.versions.all(run)
    wait_for("scores", lambda: len(selection.test_metrics(mixed.store, run)) == len(versions))
    # The evaluator may have been the last to finish.
    config = current_config(mixed.store, run)
    models = ModelStore(mixed.store, run, config.redis.chunk_bytes, mixed.redis.state_dir)
    retention.prune_versions(models, config)

    def on_server() -> set[str]:
        keys = mixed.store.data.redis.keys(keyspace.chunk(keyspace.model_blob(run, "*"), 0))
        return {key.decode().split(":")[-2] for key in keys}

    newest = [versions[number] for number in (2, 3)]
    wanted = {entry[kind] for entry in newest for kind in ("digest", "download")}
    assert len(wanted) == 4
    assert wait_for("the last clean-up", lambda: on_server() == wanted, 20)


def test_a_changed_model_codec_counts_from_the_next_version_on(mixed: Federation) -> None:
    run = mixed.begin("changed", "run.rounds=1")
    mixed.finish(run)
    assert mixed.begin("changed", "run.rounds=2", "model.codec=bfloat16") == run
    state = mixed.finish(run)
    rounds = {
        n: mixed.store.control.rounds.get(run, n) for n in range(state.round - 2, state.round + 1)
    }
    versions = mixed.store.control.versions.all(run)

    assert state.state == "completed"
    trained = [r for r in rounds.values() if r is not None]
    assert [r.download for r in trained] == [
        versions[r.base_version].get("download", "") for r in trained
    ]
    assert ["download" in entry for entry in versions.values()] == [False, False, True, True]


def test_who_makes_version_0_has_no_residual_to_lose(store: Store, tmp_path: Path) -> None:
    hand = ManualRun(store, tmp_path, "ab", 8, *TOPK)
    assert [store.control.receipts.accepted(hand.run, client) for client in "ab"] == [None, None]
