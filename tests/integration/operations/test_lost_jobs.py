"""Jobs that RQ has as started and that no worker runs: found by the job that their worker's lease names, and tried again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from fl_queue.coordinator.operations import controls, healer
from fl_queue.store import LEASE_S, Store, keyspace
from fl_queue.store.embedded.server_pair import EmbeddedRedis
from fl_queue.store.jobs import dead_jobs, dispatch, rq_types
from fl_queue.store.jobs.dispatch import JobTicket
from fl_queue.store.jobs.rq_types import FLJob
from tests.support.federation import Federation, wait_for
from tests.support.manual_run import ManualRun
from workers.pool_worker import PoolWorker
from workers.rq_worker import FLWorker

CLIENTS = 1
EVALUATOR = False
WORKER = "its-worker"


def started(store: Store, ticket: JobTicket, **lease: str) -> None:
    """Have RQ know a job as started by a living worker whose lease has these fields."""
    redis = store.control.redis
    redis.lrem(f"rq:queue:{ticket.queue}", 0, ticket.job)
    redis.hset(FLJob.key_for(ticket.job), mapping={"status": "started", "worker_name": WORKER})
    redis.hset(keyspace.CLOCK, "settling_s", 0)
    store.control.leases.hold(
        keyspace.worker(WORKER), "t", 60, {"role": "pool", "process": "", **lease}
    )


def ticket_of(client: str = "a") -> JobTicket:
    return JobTicket(client, rq_types.TRAIN, keyspace.client_queue(client), "run-1", 1, 60)


# Contents of a lease


@pytest.mark.parametrize(
    ("at", "reason"),
    [("a_other_1_x", "its worker is at job a_other_1_x"), ("", "its worker is at no job")],
)
def test_a_started_job_that_its_workers_lease_does_not_name_is_lost(
    store: Store, at: str, reason: str
) -> None:
    ticket = ticket_of()
    started(store, ticket, job=at)

    assert (
        dead_jobs.JobMonitor(store).verdict(ticket) is None
    )  # The lease may be about to be written.
    assert dead_jobs.JobMonitor(store, lease_s=0.0).verdict(ticket) == f"lost: {reason}"


def test_a_started_job_lives_while_its_workers_lease_names_it(store: Store) -> None:
    ticket = ticket_of()
    started(store, ticket, job=ticket.job)

    assert dead_jobs.JobMonitor(store, 0.0, 0.0).verdict(ticket) is None


def test_a_worker_of_an_earlier_release_is_believed(store: Store) -> None:
    # Its lease has no such field.
    ticket = ticket_of()
    started(store, ticket)

    assert dead_jobs.JobMonitor(store, 0.0, 0.0).verdict(ticket) is None
    store.control.leases.release(keyspace.worker(WORKER), "t")
    assert dead_jobs.JobMonitor(store, 0.0, 0.0).verdict(ticket) == "its worker is dead"


def test_after_an_outage_no_job_is_lost_before_all_leases_are_written_anew(store: Store) -> None:
    ticket = ticket_of()
    started(store, ticket, job="")
    store.control.redis.hset(keyspace.CLOCK, "settling_s", 5)

    assert dead_jobs.JobMonitor(store, 0.0, 0.0).verdict(ticket) is None


def test_the_healer_tries_every_kind_of_lost_job_again(store: Store, tmp_path: Path) -> None:
    # A client's, an aggregator's and an evaluation: their worker went on to something else.
    hand = ManualRun(store, tmp_path, "ab", 100)
    evaluation = dispatch.evaluation_tickets(store, hand.run)[0]
    tickets = dispatch.tickets(store, hand.run, 1)
    for ticket in (*tickets.values(), evaluation):
        started(store, ticket, job="")
    healer.Healer(store, tmp_path, immediate=True).heal(hand.run)

    again = dispatch.tickets(store, hand.run, 1)
    assert {who: ticket.attempt for who, ticket in again.items()} == dict.fromkeys(tickets, 2)
    assert dispatch.evaluation_tickets(store, hand.run)[0].attempt == 2


# What workers write


@pytest.fixture
def worker(private_redis: EmbeddedRedis) -> Iterator[FLWorker]:
    # Not our own connection, which waits by itself: a plain ``rq worker`` has this one.
    with redis.Redis.from_url(private_redis.url, socket_timeout=5) as connection:
        yield PoolWorker([keyspace.POOL_QUEUE], connection=connection)


def begun(worker: FLWorker, store: Store) -> Any:
    """A job that a worker has in its hands."""
    ticket = JobTicket("group-0", rq_types.POOL_TRAIN, keyspace.POOL_QUEUE, "run-1", 1, 60)
    with store.control.redis.pipeline() as pipe:
        pipe.multi()
        dispatch.publish(ticket, pipe, store.control.redis)
        pipe.execute()
    job, _ = worker.queue_class.dequeue_any(worker.queues, 1, connection=worker.connection)
    return job


def test_the_transaction_that_starts_a_job_names_it_in_the_lease(
    worker: FLWorker, private_redis: EmbeddedRedis, tmp_path: Path
) -> None:
    with Store.open(private_redis.url, private_redis.blob_url, tmp_path) as store:
        job = begun(worker, store)
        worker._at_work = job.id
        worker.prepare_job_execution(job, remove_from_intermediate_queue=True)

        # However late the thread that extends the lease is; and a lease that ran out comes to an end.
        assert store.control.workers.job_of(worker.name) == job.id
        assert 0 < store.control.redis.ttl(keyspace.worker(worker.name)) <= LEASE_S
        worker._at_work = ""
        worker._extend()
        assert store.control.workers.job_of(worker.name) == ""


def test_a_failure_that_falls_into_an_outage_is_written_after_it(
    worker: FLWorker,
    private_redis: EmbeddedRedis,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with Store.open(private_redis.url, private_redis.blob_url, tmp_path) as store:
        job = begun(worker, store)
        worker._at_work = job.id
        worker.prepare_job_execution(job, remove_from_intermediate_queue=True)
        private_redis.kill("control")
        ending = threading.Thread(
            target=worker.handle_job_failure,
            args=(job, worker.queues[0]),
            kwargs={"exc_string": "Error: control server away"},
        )
        ending.start()
        # Only once RQ has given up, and would have gone on to the next job.
        wait_for("RQ to give up", lambda: "failed to persist failure" in caplog.text)
        private_redis.restart("control")
        ending.join()

        assert job.get_status() == "failed"


@pytest.mark.timeout(120)
def test_a_real_workers_lease_names_its_job_while_it_trains(federation: Federation) -> None:
    control = federation.store.control
    run = federation.begin("named", "round.cohort=1", "train.epochs=1000000", "run.rounds=1")
    federation.reach(run, 1)

    def lease() -> dict[str, str]:
        living = control.workers.living()
        # None while a worker that had no processor for seconds has lost it.
        return next((found for found in living if found.get("client") == "site-1"), {})

    job = control.rounds.jobs(run, 1)["site-1"]["job"]
    wait_for("its lease to name the job", lambda: lease().get("job") == job)
    wait_for("it to train", lambda: federation.trained(run) == 1)
    controls.cancel(federation.store, "named")
    wait_for("its lease to name none", lambda: lease().get("job") == "")
