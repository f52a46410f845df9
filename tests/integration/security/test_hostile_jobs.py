"""Hostile job hashes, written straight into Redis: refused with a reason, and the worker goes on."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from rq.exceptions import DequeueTimeout

from fl_queue.store import Store, keyspace, plain_client
from fl_queue.store.jobs import dispatch, rq_cleanup, rq_types
from fl_queue.store.jobs.dispatch import JobTicket
from tests.support.hostile_jobs import HASHES, STAMP, Evil, call

JOB = "site-1_demo-3f2a9c_3_ab12"


def honest(**changes: Any) -> dict[str, Any]:
    return {
        **call(),
        "origin": keyspace.client_queue("site-1"),
        "status": "queued",
        "timeout": "60",
        "created_at": STAMP,
        "enqueued_at": STAMP,
        **changes,
    }


def refusals(store: Store) -> list[str]:
    """Reasons for which a client's worker would refuse the entries of its queue."""
    found: list[str] = []
    queue = rq_types.queue(keyspace.client_queue("site-1"), plain_client(store.servers.url, 5))
    queue.on_refused = lambda job, reason: found.append(reason)
    while store.control.redis.exists(queue.key):
        with pytest.raises(DequeueTimeout):
            rq_types.FLQueue.dequeue_any([queue], None)
    assert store.control.redis.lrange(f"{queue.key}:intermediate", 0, -1) == []
    return found


@pytest.mark.parametrize(("changes", "word"), HASHES, ids=[str(n) for n in range(len(HASHES))])
def test_a_hostile_hash_is_refused_with_the_reason(
    store: Store, changes: dict[str, Any], word: str
) -> None:
    store.control.redis.hset(f"rq:job:{JOB}", mapping=honest(**changes))
    store.control.redis.rpush("rq:queue:flq-client-site-1", JOB)

    (reason,) = refusals(store)

    assert word in reason
    assert len(reason) < 300


def test_the_honest_hash_is_a_job_whatever_else_its_hash_holds(store: Store) -> None:
    redis = store.control.redis
    garbage = pickle.dumps(Evil())
    redis.hset(
        f"rq:job:{JOB}",
        mapping=honest(
            meta=garbage, result=garbage, exc_info=garbage, ttl="x", worker_name=b"\xff"
        ),
    )
    redis.rpush("rq:queue:flq-client-site-1", JOB)
    queue = rq_types.queue(keyspace.client_queue("site-1"), redis)

    found = rq_types.FLQueue.dequeue_any([queue], None)

    assert found is not None
    assert found[0].call() == ("demo-3f2a9c", 3)
    assert found[0].meta == {}


@pytest.mark.parametrize(
    ("origin", "word"), [("site-1", "another client"), ("site-2", "it is one of queue")]
)
def test_another_clients_job_is_refused(store: Store, origin: str, word: str) -> None:
    other = JOB.replace("site-1", "site-2")
    redis = store.control.redis
    redis.hset(f"rq:job:{other}", mapping=honest(origin=keyspace.client_queue(origin)))
    redis.rpush("rq:queue:flq-client-site-1", other)

    (reason,) = refusals(store)

    assert word in reason


@pytest.mark.parametrize("role", ["aggregate", "evaluate", "pool"])
def test_each_role_runs_its_own_functions_only(role: str) -> None:
    queues = {
        "aggregate": keyspace.AGGREGATE_QUEUE,
        "evaluate": keyspace.EVALUATE_QUEUE,
        "pool": keyspace.POOL_QUEUE,
    }
    own = rq_types.allowed(queues[role])

    assert own
    assert not own & rq_types.allowed(keyspace.client_queue("site-1"))
    assert all(not own & rq_types.allowed(name) for other, name in queues.items() if other != role)
    assert rq_types.allowed("default") == frozenset()


def test_keys_of_another_type_neither_stop_a_worker_nor_the_healer(store: Store) -> None:
    redis = store.control.redis
    ticket = JobTicket(
        "site-1", rq_types.TRAIN, keyspace.client_queue("site-1"), "demo-3f2a9c", 3, 60
    )
    key = f"rq:queue:{ticket.queue}"
    redis.set(f"rq:job:{ticket.job}", "x")
    redis.set(f"rq:results:{ticket.job}", "x")
    for damaged in (f"{key}:intermediate", *(f"rq:{n}:{ticket.queue}" for n in ("wip", "failed"))):
        redis.set(damaged, "x")
    redis.set("rq:workers", "x")
    redis.sadd("rq:queues", key, b"\xff")
    assert dispatch.job_state(store, ticket) == "gone"
    assert dispatch.failure(store, ticket) == "no reason recorded"
    dispatch.forget(store, ticket)

    rq_cleanup.sweep(store)

    redis.delete(key)
    redis.set(key, "x")
    assert "removed" in refusals(store)[0]
    assert redis.type(key) == b"none"
    redis.set(key, "x")
    assert dispatch.queued(store, ticket.queue) == []
