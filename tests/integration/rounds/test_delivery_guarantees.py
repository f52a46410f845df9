"""The laws of conservation, fencing and the outbox, on real servers and without workers."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import redis
from rq.serializers import JSONSerializer

from fl_queue.client import outbox
from fl_queue.client.outbox import SendOptions
from fl_queue.config import loading
from fl_queue.coordinator.aggregator import late_updates
from fl_queue.coordinator.rounds import lifecycle, runs
from fl_queue.coordinator.rounds.ending import Ending
from fl_queue.errors import ConfigError, JobRefused, OwnershipLost, RunStateError
from fl_queue.protocol import message, tensor_layout
from fl_queue.protocol.header import Header
from fl_queue.protocol.records import Receipt
from fl_queue.store import Incarnation, Store, keyspace, queries
from fl_queue.store.jobs import dispatch, rq_types
from fl_queue.store.jobs.rq_types import FLJob


def claim(store: Store, run: str) -> int:
    job = store.control.rounds.jobs(run, 0)["aggregator"]["job"]
    return store.control.rounds.claim(run, 0, job)


def test_racing_callers_of_advance_open_one_round(store: Store, run: str) -> None:
    lifecycle.advance(store, run)
    lifecycle.advance(store, run)
    state = store.control.runs.get(run)

    assert state is not None
    assert state.round == 0
    assert len(dispatch.queued(store, keyspace.client_queue("a"))) == 1


def test_a_replaced_incarnation_can_move_and_commit_nothing(store: Store, run: str) -> None:
    old = claim(store, run)
    store.data.taken.own(run, old, "old")
    store.data.results.push(run, b"one")
    store.data.results.push(run, b"two")
    assert store.data.taken.take(run, old, "old") == [b"one"]

    new = claim(store, run)
    store.data.taken.own(run, new, "new")

    with pytest.raises(OwnershipLost):
        store.data.taken.extend(run, old, "old")
    with pytest.raises(OwnershipLost):
        store.data.taken.take(run, old, "old", 64)
    store.data.taken.discard(run, old, "old", 1)
    assert store.data.taken.count(run, new) == 0
    assert store.data.results.count(run) == 2
    assert end(store, run, old) == "another aggregator owns the round"
    assert end(store, run, new) == "ok"
    assert end(store, run, new) == "the run is not training"


def end(store: Store, run: str, fence: int) -> str:
    state, current = store.control.runs.get(run), store.control.rounds.get(run, 0)
    assert state is not None
    assert current is not None
    ending = Ending("abandoned", "tried")
    loaded = runs.current_config(store, run)
    record = lifecycle.base_record(current, ending, 0.0, loaded)
    return lifecycle.end(
        store, Incarnation(run, current.number, fence, ""), current, ending, record, {}, loaded
    )


def test_a_command_sent_again_discards_nothing_more(store: Store, run: str) -> None:
    fence = claim(store, run)
    store.data.taken.own(run, fence, "t")
    for element in (b"one", b"two"):
        store.data.results.push(run, element)
        store.data.taken.take(run, fence, "t")
    store.data.taken.discard(run, fence, "t", 2)
    store.data.results.push(run, b"three")
    store.data.taken.take(run, fence, "t")
    store.data.taken.discard(run, fence, "t", 2)

    assert store.data.taken.count(run, fence) == 1


def test_accepted_is_never_overwritten(store: Store, run: str) -> None:
    fence = claim(store, run)
    assert store.control.receipts.add(run, 0, "a", Receipt("accepted", token="1"), fence)
    assert store.control.receipts.add(run, 0, "a", Receipt("duplicate", token="2"), fence)
    assert not store.control.receipts.add(run, 0, "a", Receipt("duplicate", token="3"), fence)
    receipts = store.control.receipts.of_round(run, 0)

    assert {key: receipt.status for key, receipt in receipts.items()} == {
        "a": "accepted",
        "a:duplicate": "duplicate",
    }


def test_nothing_is_written_to_a_round_that_does_not_exist(store: Store, run: str) -> None:
    assert not store.control.receipts.add(run, 7, "a", Receipt("late", token="1"), None)
    assert store.control.redis.exists(keyspace.round_updates(run, 7)) == 0


def test_time_is_counted_not_read(store: Store, run: str) -> None:
    # The last tick lies an hour back: an outage, or a clock that jumped.
    store.control.redis.hincrbyfloat(keyspace.round_(run, 0), "ticked_at", -3600)
    elapsed_s = store.control.rounds.count_time(run, 0)

    assert elapsed_s is not None
    assert elapsed_s <= 2.5


def test_a_running_run_refuses_a_second_start_and_a_fixed_field_stays(
    store: Store, run: str
) -> None:
    loaded = loading.load("mnist-3v7", ("round.cohort=1",), {})
    with pytest.raises(RunStateError, match="is training"):
        runs.start_run(store, "lawful", loaded, 1)
    end(store, run, 0)
    with pytest.raises(ConfigError) as caught:
        runs.start_run(store, "lawful", loading.load("mnist-3v7", ("run.seed=7",), {}), 1)
    assert caught.value.field == "run.seed"


@pytest.mark.parametrize(
    "function", ["os.system", "eval", "fl_queue.coordinator.rounds.runs.start_run"]
)
def test_a_job_that_names_another_function_is_refused(
    store: Store, function: str, tmp_path: Path
) -> None:
    mark = tmp_path / "ran"
    connection = store.control.redis
    queue = rq_types.queue("flq-client-a", connection)
    queue.enqueue_call(function, args=[f"touch {mark}", 1], job_id="a_r_1_x")

    with pytest.raises(JobRefused, match="is no function of queue"):
        FLJob.fetch("a_r_1_x", connection=connection, serializer=JSONSerializer)
    assert not mark.exists()


def test_the_outbox_keeps_an_update_until_its_round_has_ended(
    store: Store, run: str, tmp_path: Path
) -> None:
    header = Header(kind="failure", run=run, round=0, client="a", token="t", reason="no")
    path = outbox.write(tmp_path, header)
    again = outbox.read(path)

    assert again is not None
    assert again[0] == header
    assert outbox.sweep(tmp_path, "a", partial(queries.has_ended, store.control)) == 1
    end(store, run, 0)
    assert outbox.sweep(tmp_path, "a", partial(queries.has_ended, store.control)) == 0
    assert not path.exists()


def test_a_damaged_outbox_file_is_no_update(store: Store, run: str, tmp_path: Path) -> None:
    body = os.urandom(64)
    header = Header(
        kind="update",
        run=run,
        round=0,
        client="a",
        token="t",
        body_bytes=64,
        body_digest=tensor_layout.body_digest(body),
    )
    path = outbox.write(tmp_path, header, [body])
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))

    assert outbox.read(path) is None


def test_a_body_over_the_inline_limit_travels_in_chunks(store: Store, run: str) -> None:
    body = os.urandom(200_000)
    header = Header(
        kind="update",
        run=run,
        round=0,
        client="a",
        token="t",
        body_bytes=len(body),
        body_digest=tensor_layout.body_digest(body),
    )
    assert outbox.push(store, header, memoryview(body), SendOptions(1000, 65536), lambda: False)
    element = store.data.redis.lindex(keyspace.results(run), 0)
    assert isinstance(element, bytes)
    found, inline = message.unpack(element, max_body_bytes=len(body))

    assert (len(inline), len(element) < 1000) == (0, True)
    assert found == replace(header, chunk_bytes=65536)
    assert (
        store.data.chunks.get(
            keyspace.update_blob("a", run, found.body_digest), found.body_bytes, 65536
        )
        == body
    )


def test_the_password_of_a_url_is_never_shown() -> None:
    url = "redis://user:secret@127.0.0.1:1/0"
    store = Store(url, url)
    with pytest.raises(Exception, match=r"redis://user:\*\*\*@127") as caught:
        store.check()
    assert "secret" not in str(caught.value)
    assert not isinstance(caught.value, redis.RedisError)


@pytest.mark.parametrize("kind", ["model", "update"])
def test_a_header_names_no_chunks_but_its_clients(store: Store, run: str, kind: str) -> None:
    # A lie may name the digest of the version that all train from.
    body = memoryview(bytes(100))
    digest = tensor_layout.body_digest(body)
    model, own, other = (
        keyspace.model_blob(run, digest),
        keyspace.update_blob("a", run, digest),
        keyspace.update_blob("b", run, digest),
    )
    for name in (model, own, other):
        store.data.chunks.put(name, [body], None)
    header = Header(
        kind=kind, run=run, round=0, client="a", body_bytes=100, body_digest=digest, chunk_bytes=100
    )
    late_updates.drop_chunks(store, run, header)
    there = [not store.data.chunks.are_missing(name, 1) for name in (model, own, other)]
    assert there == [True, False, True]
