"""
The traps of RQ and redis-py, one test each: every one is set on purpose, and no run falls in.

The first half has real workers, the second half speaks to real servers through a bad network.
"""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rq import Worker
from rq.intermediate_queue import IntermediateQueue
from rq.job import JobStatus

import fl_queue.store
from fl_queue.client import outbox
from fl_queue.client.outbox import SendOptions
from fl_queue.config import loading
from fl_queue.coordinator.aggregator.collector import RoundAggregator
from fl_queue.coordinator.operations.healer import Healer
from fl_queue.coordinator.rounds import lifecycle, runs
from fl_queue.coordinator.rounds.ending import Ending
from fl_queue.errors import StoreUnavailable
from fl_queue.models.model_store import ModelStore
from fl_queue.protocol import message, tensor_layout
from fl_queue.protocol.header import Header
from fl_queue.protocol.identifiers import AGGREGATOR
from fl_queue.protocol.manifest import Manifest, TensorSpec
from fl_queue.store import Incarnation, Store, keyspace, plain_client
from fl_queue.store.jobs import rq_types
from fl_queue.store.jobs.dispatch import JobTicket
from fl_queue.store.jobs.rq_types import FLJob
from tests.support.federation import Federation, child_of, kill, wait_for
from tests.support.proxy import Loss, Proxy

#: Two rounds, each of a second (an epoch takes about a millisecond), to be disturbed in the middle.
EPOCHS = 1000
#: Sites are not asked before the first round: one that sleeps by then would hold it up.
DISTURBED = (
    "run.rounds=2", "run.preflight=off", "round.cohort=2", f"train.epochs={EPOCHS}",
)  # fmt: skip
#: Of a run that is disturbed while a worker sleeps: how long it trains does not matter.
SHORT = "train.epochs=2"
#: RQ gives an entry of its intermediate list 60 s; ours are older from the start.
LONG_AGO_S = 1000

Begin = Callable[..., str]


# With real workers


@pytest.fixture(scope="module")
def calm(federation: Federation) -> list[str]:
    """Digests of an undisturbed run named `same`."""
    return federation.digests_of("same", *DISTURBED)


@pytest.fixture(scope="module")
def calm_short(federation: Federation) -> list[str]:
    """The same with short rounds."""
    return federation.digests_of("same", *DISTURBED, SHORT)


@pytest.fixture
def begin(federation: Federation) -> Iterator[Begin]:
    """Begins a run named `same` (seeds come from the name), which is free again afterwards."""

    def begin(*overrides: str) -> str:
        return federation.begin("same", *DISTURBED, *overrides)

    yield begin
    federation.store.control.redis.hdel(keyspace.RUNS, "same")


def digests(federation: Federation, run: str) -> list[str]:
    return [entry["digest"] for entry in federation.store.control.versions.all(run).values()]


def events(store: Store, stream: str) -> list[dict[str, Any]]:
    return [event for _, _, event in store.control.events.read({stream: "0-0"}, None)]


def healed(store: Store, run: str, who: str) -> bool:
    """Whether a job of this worker was given a new attempt."""
    return any(
        event["event"] == "healed" and f"job of {who} " in event["what"]
        for event in events(store, keyspace.events(run))
    )


def rq_name(federation: Federation, client: str) -> str:
    """Name of a client's living RQ worker; empty when it has none."""
    return next(
        (
            worker["name"]
            for worker in federation.store.control.workers.living()
            if worker.get("client") == client
        ),
        "",
    )


def restarted(federation: Federation, client: str, old: str) -> str:
    """Name of the worker that has followed ``old`` and is past all it does at its start."""

    def idle() -> str:
        new = rq_name(federation, client)
        state = federation.store.control.redis.hget(f"rq:worker:{new}", "state")
        return new if new != old and state in (b"idle", b"busy") else ""

    return wait_for(f"another worker of {client}", idle)


@contextmanager
def asleep(federation: Federation, client: str) -> Iterator[None]:
    """A client's worker sleeps, and Redis does not owe it a job from before."""
    pid, name = federation.worker_pid(client), rq_name(federation, client)

    def pops() -> bool:
        return any(
            entry["name"] == name and "b" in entry["flags"]
            for entry in federation.store.control.redis.client_list()
        )

    os.kill(pid, signal.SIGSTOP)
    try:
        wait_for("its blocking pop to end", lambda: not pops())
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def queued(federation: Federation, run: str, client: str, number: int = 1) -> str:
    """Id of a client's job of a round, once it waits in its queue."""
    redis, key = federation.store.control.redis, queue_key(client)

    def waits() -> str:
        job: str = federation.store.control.rounds.jobs(run, number).get(client, {}).get("job", "")
        return job if job.encode() in redis.lrange(key, 0, -1) else ""

    return wait_for(f"the job of {client}", waits)


def training(federation: Federation, run: str, client: str) -> None:
    """Wait until a client is in the middle of training."""

    def trains() -> bool:
        event = federation.store.control.events.last(keyspace.client_events(client)) or {}
        return event.get("run") == run and 1 <= event.get("epoch", 0) < event["epochs"]

    wait_for(f"{client} to train", trains)


def queue_key(client: str) -> str:
    return f"rq:queue:{keyspace.client_queue(client)}"


def make_stale(store: Store, key: str, job: str) -> str:
    """Leave a job's id in a queue's intermediate list, as a horse that was killed early does."""
    stale = IntermediateQueue(key, store.control.redis)
    store.control.redis.rpush(stale.key, job)
    store.control.redis.set(stale.get_first_seen_key(job), time.time() - LONG_AGO_S)
    return stale.key


def test_a_stale_intermediate_entry_does_not_fail_a_finished_job(
    federation: Federation, begin: Begin, calm_short: list[str]
) -> None:
    control = federation.store.control
    with asleep(federation, "site-2"):  # So that the round stays open.
        run = begin(SHORT)
        wait_for("site-1's update", lambda: "site-1" in control.receipts.of_round(run, 1))
        job = control.rounds.jobs(run, 1)["site-1"]["job"]

        def status() -> bytes | None:
            return control.redis.hget(FLJob.key_for(job), "status")

        wait_for("site-1's job to finish", lambda: status() == b"finished")
        stale = make_stale(federation.store, queue_key("site-1"), job)
        # RQ looks at these entries when a worker starts; the healer ticks meanwhile.
        old = rq_name(federation, "site-1")
        kill(federation.worker_pid("site-1"))
        restarted(federation, "site-1", old)

        assert status() == b"finished"
        assert control.rounds.jobs(run, 1)["site-1"]["job"] == job
        assert control.redis.zscore("rq:failed:" + keyspace.client_queue("site-1"), job) is None
    assert federation.finish(run).state == "completed"
    assert digests(federation, run) == calm_short
    assert control.redis.lrange(stale, 0, -1) == []


def test_rq_by_itself_fails_a_finished_job_for_a_stale_entry(store: Store, tmp_path: Path) -> None:
    # The control experiment: when RQ mends this, it fails, and the protection can be looked at again.
    with plain_client(redis_url(store, "control"), 5) as connection:
        queue = rq_types.queue(keyspace.client_queue("trap"), connection)
        job = queue.enqueue_call(rq_types.TRAIN, args=["run", 1], job_id="trap_run_1_x")
        queue.remove(job)
        job.set_status(JobStatus.FINISHED)
        make_stale(store, queue.key, job.id)
        worker = Worker([queue], connection=connection, serializer=queue.serializer)
        queue.intermediate_queue.cleanup(worker, queue)

        assert job.get_status(refresh=True) == JobStatus.FAILED


def test_a_job_lost_between_pop_and_start_is_given_out_again(
    federation: Federation, begin: Begin, calm_short: list[str]
) -> None:
    redis, key = federation.store.control.redis, queue_key("site-1")
    with asleep(federation, "site-1"):
        run = begin(SHORT)
        job = queued(federation, run, "site-1")
        # All that a worker leaves that was killed between the two.
        assert redis.lmove(key, f"{key}:intermediate", "LEFT", "RIGHT") == job.encode()
    state = federation.finish(run)

    assert state.state == "completed"
    assert healed(federation.store, run, "site-1")
    assert digests(federation, run) == calm_short


def test_a_poison_job_hash_costs_nothing(
    federation: Federation, begin: Begin, calm_short: list[str]
) -> None:
    redis, key = federation.store.control.redis, queue_key("site-1")
    worker = federation.worker_pid("site-1")
    with asleep(federation, "site-1"):
        run = begin(SHORT)
        queued(federation, run, "site-1")
        redis.hset("rq:job:poison", mapping={"status": "poisoned", "data": "x"})
        redis.lpush(key, "poison")
    try:
        state = federation.finish(run)
    finally:
        redis.delete("rq:job:poison")

    # RQ's own worker ends at it, and its maintenance would meet it again at each start.
    assert federation.worker_pid("site-1") == worker
    assert b"poison" not in redis.lrange(f"{key}:intermediate", 0, -1)
    assert state.state == "completed"
    assert digests(federation, run) == calm_short


def test_the_maintenance_lock_of_a_dead_worker_delays_no_repair(
    federation: Federation, begin: Begin, calm: list[str]
) -> None:
    redis = federation.store.control.redis
    # Not those of RQ's set: the healer has a queue forgotten while it is empty.
    queues = [keyspace.AGGREGATE_QUEUE, keyspace.EVALUATE_QUEUE]
    queues += map(keyspace.client_queue, federation.clients)
    locks = [f"rq:clean_registries:{queue}" for queue in queues]
    for lock in locks:
        redis.set(lock, 1, ex=899)
    run = begin()
    training(federation, run, "site-2")
    kill(federation.worker_pid("site-2"))
    state = federation.finish(run)

    assert state.state == "completed"
    assert healed(federation.store, run, "site-2")
    assert digests(federation, run) == calm
    assert redis.exists(*locks) == len(locks)
    redis.delete(*locks)


def test_the_name_of_a_dead_worker_keeps_no_new_one_out(
    federation: Federation, begin: Begin, calm: list[str]
) -> None:
    old = rq_name(federation, "site-1")
    run = begin()
    training(federation, run, "site-1")
    kill(federation.worker_pid("site-1"))
    new = restarted(federation, "site-1", old)
    # RQ takes the dead one for alive; a worker of its name would be refused as long.
    dead = federation.store.control.redis.hgetall(f"rq:worker:{old}")
    state = federation.finish(run)

    assert new != old
    assert dead
    assert b"death" not in dead
    assert state.state == "completed"
    assert digests(federation, run) == calm


def test_a_training_process_does_not_outlive_its_worker(
    federation: Federation, begin: Begin
) -> None:
    epochs = 2 * EPOCHS  # An orphan would have seconds of training left.
    run = begin("run.rounds=1", f"train.epochs={epochs}")
    training(federation, run, "site-1")
    worker = federation.worker_pid("site-1")
    below = [child_of(worker), *federation.trainers("site-1")]
    assert len(below) >= 2  # The fork server and a trainer; that of an earlier run may be ending.
    kill(worker)
    wait_for("all of them to end", lambda: not any(map(is_running, below)), 2)
    state = federation.finish(run)

    assert state.state == "completed"
    seen = [
        event
        for event in events(federation.store, keyspace.client_events("site-1"))
        if (event.get("run"), event.get("round")) == (run, 1)
    ]
    starts = [place for place, event in enumerate(seen) if event["event"] == "training"]
    # No other attempt's epochs lie between those of the second attempt.
    after = [event["epoch"] for event in seen[starts[-1] + 1 :]]
    assert after == sorted(set(after))
    assert after[-1] == epochs
    assert len(starts) == 2


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# On real servers, through a bad network


MANIFEST = Manifest((TensorSpec("w", (3,), "parameter"),))
BODY = bytes(MANIFEST.nbytes)


def redis_url(store: Store, role: str) -> str:
    return store.servers.url if role == "control" else store.servers.blob_url


@contextmanager
def behind_proxy(store: Store, role: str, options: str = "") -> Iterator[tuple[Proxy, Store]]:
    """The same two servers, one of them behind a proxy."""
    with Proxy(redis_url(store, role)) as proxy:
        urls = {name: redis_url(store, name) for name in ("control", "data")}
        urls[role] = proxy.url + options
        remote = Store(urls["control"], urls["data"])
        try:
            yield proxy, remote
        finally:
            remote.close()


def new_run(store: Store, name: str, clients: int) -> str:
    """A run on clients a, b, ... that are alive by their leases, and nothing else."""
    for client in "ab"[:clients]:
        store.control.leases.hold(keyspace.client_holder(client), client, 60, {})
    loaded = loading.load("mnist-3v7", (f"round.cohort={clients}",), {})
    return runs.start_run(store, name, loaded, 1).run_id


def element(store: Store, run: str, client: str, kind: str) -> Header:
    """What a client answers a round with."""
    state = store.control.runs.get(run)
    assert state is not None
    return Header(
        kind=kind,
        run=run,
        round=state.round,
        client=client,
        base_version=state.version or 0,
        base_digest=state.digest,
        token=client * 16,
        num_examples=5,
        tensors=tensor_layout.entries(MANIFEST),
        body_bytes=len(BODY),
        body_digest=tensor_layout.body_digest(BODY),
        manifest=MANIFEST.to_json() if kind == "model" else "",
    )


def collect(store: Store, run: str, folder: Path) -> str:
    """What the aggregator's job of the open round does."""
    state = store.control.runs.get(run)
    assert state is not None
    job = store.control.rounds.jobs(run, state.round)[AGGREGATOR]["job"]
    return RoundAggregator(store, run, state.round, job, folder).work()


def first_training_round(store: Store, folder: Path) -> str:
    """A run whose round 1 is open on clients a and b."""
    run = new_run(store, "trapped", clients=2)
    lifecycle.advance(store, run)
    (client,) = set(store.control.rounds.jobs(run, 0)) - {AGGREGATOR}
    store.data.results.push(run, message.pack(element(store, run, client, "model"), BODY))
    collect(store, run, folder)
    return run


def test_healers_that_meet_at_a_dead_job_publish_one_new_attempt(
    redis_urls: tuple[str, str], tmp_path: Path
) -> None:
    healers = [Healer(Store(*redis_urls), tmp_path) for _ in range(4)]
    store = healers[0].store
    for healer in healers:
        # The lease normally lets one at a time work; under one token it stops no healer.
        healer.token = "shared"
    for turn in range(20):
        run = new_run(store, f"trapped-{turn}", clients=1)
        lifecycle.advance(store, run)
        dead = [JobTicket.from_dict(raw) for raw in store.control.rounds.jobs(run, 0).values()]
        for ticket in dead:
            rq_types.queue(ticket.queue, store.control.redis).empty()
            started = {"status": "started", "worker_name": "killed"}
            store.control.redis.hset(FLJob.key_for(ticket.job), mapping=started)
        at_once(healer.tick for healer in healers)

        living = [JobTicket.from_dict(raw) for raw in store.control.rounds.jobs(run, 0).values()]
        assert [ticket.attempt for ticket in living] == [2, 2]
        for ticket in living:
            queue = rq_types.queue(ticket.queue, store.control.redis)
            assert queue.get_job_ids() == [ticket.job]
            queue.empty()
        store.control.redis.hdel(keyspace.RUNS, f"trapped-{turn}")
    for healer in healers:
        healer.store.close()


def at_once(calls: Iterable[Callable[[], None]]) -> None:
    """Make calls from threads that start together; raises what any of them raised."""
    raised: list[BaseException] = []
    waiting = list(calls)
    barrier = threading.Barrier(len(waiting))

    def work(call: Callable[[], None]) -> None:
        barrier.wait(30)
        try:
            call()
        except BaseException as exc:  # noqa: BLE001
            raised.append(exc)

    threads = [threading.Thread(target=work, args=(call,), daemon=True) for call in waiting]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    if raised:
        raise raised[0]
    assert not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("loss", ["reset", "timeout"])
def test_a_push_whose_reply_is_lost_is_made_once_and_merged_once(
    store: Store, tmp_path: Path, loss: Loss
) -> None:
    run = first_training_round(store, tmp_path)
    header = element(store, run, "a", "update")
    with behind_proxy(store, "data", "?socket_timeout=0.5") as (proxy, remote):
        proxy.lose_replies(b"RPUSH", loss)
        with pytest.raises(StoreUnavailable):
            remote.data.results.push(run, message.pack(header, BODY))
        assert (proxy.lost, store.data.results.count(run)) == (1, 1)

        # The client cannot know, and pushes again under the same token.
        assert outbox.push(remote, header, memoryview(BODY), SendOptions(1000, 1000), lambda: False)
        assert store.data.results.count(run) == 2
    store.data.results.push(run, message.pack(element(store, run, "b", "update"), BODY))
    collect(store, run, tmp_path)

    receipts = store.control.receipts.of_round(run, 1)
    assert {who: receipt.status for who, receipt in receipts.items()} == {
        "a": "accepted",
        "a:duplicate": "duplicate",
        "b": "accepted",
    }
    (record,) = store.control.history.records(run)
    assert (record.outcome, record.weights) == ("committed", {"a": 5, "b": 5})


@pytest.mark.parametrize("loss", ["reset", "timeout"])
def test_a_transaction_whose_reply_is_lost_opens_one_round(store: Store, loss: Loss) -> None:
    run = new_run(store, "trapped", clients=1)
    with behind_proxy(store, "control", "?socket_timeout=0.5") as (proxy, remote):
        proxy.lose_replies(b"EXEC", loss)
        lifecycle.advance(remote, run)
        assert proxy.lost == 1
        lifecycle.advance(remote, run)

    state = store.control.runs.get(run)
    assert state is not None
    assert state.round == 0
    for who, ticket in store.control.rounds.jobs(run, 0).items():
        queue = rq_types.queue(ticket["queue"], store.control.redis)
        assert queue.get_job_ids() == [ticket["job"]], who
    opened = [event["event"] for event in events(store, keyspace.events(run))]
    assert opened == ["run_created", "round_opened"]


@pytest.mark.parametrize("loss", ["reset", "timeout"])
def test_scripts_whose_replies_are_lost_decide_once(
    store: Store, tmp_path: Path, loss: Loss
) -> None:
    run = first_training_round(store, tmp_path)
    for client in "ab":
        store.data.results.push(run, message.pack(element(store, run, client, "update"), BODY))
    with (
        behind_proxy(store, "control", "?socket_timeout=0.5") as (before_control, remote),
        behind_proxy(remote, "data", "?socket_timeout=0.5") as (before_data, remote),
    ):
        before_control.lose_replies(b"EVALSHA", loss)
        before_data.lose_replies(b"EVALSHA", loss, spare=take_script())
        answer = collect(remote, run, tmp_path)
        # At least: claim, a tick, two receipts, the commit; own, discard and give back.
        assert (before_control.lost >= 5, before_data.lost >= 3) == (True, True)

    assert answer == "committed: 2 of 2 updates in"
    assert [record.outcome for record in store.control.history.records(run)] == ["committed"]
    assert sorted(store.control.versions.all(run)) == [0, 1]
    seen = [event["event"] for event in events(store, keyspace.events(run))]
    assert (seen.count("round_committed"), seen.count("update_received")) == (1, 3)
    assert store.data.results.count(run) + store.data.taken.count(run, 9) == 0

    # Abandoning is the same script.
    state = store.control.runs.get(run)
    assert state is not None
    assert abandon(store, run, loss) == "ok"
    assert len(store.control.history.records(run)) == 2
    again = store.control.runs.get(run)
    assert again is not None
    assert again.abandoned == state.abandoned + 1


@pytest.mark.parametrize("loss", ["reset", "timeout"])
def test_a_taken_element_whose_reply_is_lost_comes_back_to_the_next_incarnation(
    store: Store, tmp_path: Path, loss: Loss
) -> None:
    run = first_training_round(store, tmp_path)
    for client in "ab":
        store.data.results.push(run, message.pack(element(store, run, client, "update"), BODY))
    with behind_proxy(store, "data", "?socket_timeout=0.5") as (proxy, remote):
        proxy.lose_replies(take_script(), loss)
        with pytest.raises(StoreUnavailable):
            collect(remote, run, tmp_path)
        assert proxy.lost == 1  # Sent again it would take the next one and leave this one behind.

    assert store.data.results.count(run) + store.data.taken.count(run, 9) == 2
    assert collect(store, run, tmp_path) == "committed: 2 of 2 updates in"


def take_script() -> bytes:
    """By which a request to take an element is known: its script's SHA-1."""
    text = (Path(fl_queue.store.__file__).parent / "lua" / "take.lua").read_bytes()
    return hashlib.sha1(text).hexdigest().encode()


def abandon(store: Store, run: str, loss: Loss) -> str:
    """End the open round through a proxy that loses the answer."""
    state = store.control.runs.get(run)
    assert state is not None
    current = store.control.rounds.get(run, state.round)
    assert current is not None
    ending, loaded = Ending("abandoned", "tried"), runs.current_config(store, run)
    record = lifecycle.base_record(current, ending, 0.0, loaded)
    with behind_proxy(store, "control", "?socket_timeout=0.5") as (proxy, remote):
        proxy.lose_replies(b"round_abandoned", loss)
        answer = lifecycle.end(
            remote,
            Incarnation(state.run_id, current.number, current.fence, ""),
            current,
            ending,
            record,
            {},
            loaded,
        )
        assert proxy.lost == 1
    return answer


def test_big_values_pass_a_link_that_needs_longer_than_five_seconds(
    store: Store, tmp_path: Path
) -> None:
    run = new_run(store, "trapped", clients=1)
    loaded = runs.current_config(store, run).redis
    manifest = Manifest((TensorSpec("w", (loaded.chunk_bytes // 4,), "parameter"),))
    body = os.urandom(manifest.nbytes)
    header = Header(
        kind="update",
        run=run,
        round=0,
        client="a",
        token="a" * 16,
        body_bytes=len(body),
        body_digest=tensor_layout.body_digest(body),
    )
    model = os.urandom(manifest.nbytes)
    digest = tensor_layout.body_digest(model)
    ModelStore(store, run, loaded.chunk_bytes, Path()).publish(digest, model)
    fetched: list[bytearray] = []
    given_up = time.monotonic() + 60
    with behind_proxy(store, "data") as (proxy, remote):
        proxy.throttle(600_000)

        def upload() -> None:
            assert outbox.push(
                remote,
                header,
                memoryview(body),
                SendOptions(loaded.inline_bytes, loaded.chunk_bytes),
                lambda: time.monotonic() > given_up,
            )

        def fetch() -> None:
            fetched.append(
                ModelStore(remote, run, loaded.chunk_bytes, Path()).fetch(digest, manifest)
            )

        started = time.monotonic()
        at_once([upload, fetch])
        took_s = time.monotonic() - started

    assert fetched == [model]
    name = keyspace.update_blob(header.client, run, header.body_digest)
    assert store.data.chunks.get(name, len(body), loaded.chunk_bytes) == body
    assert store.data.results.count(run) == 1
    assert took_s > 5  # Or else nothing was tried.
    assert proxy.sent_bytes < 1.5 * len(body)  # Never from the start again.
