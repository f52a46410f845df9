"""What a long run leaves: its small records, and nothing else, on either server."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from redis import Redis

from fl_queue.store import keyspace
from fl_queue.store.embedded.server_pair import EmbeddedRedis
from fl_queue.store.jobs import rq_cleanup
from tests.support.federation import Federation, wait_for

#: Grow by a small record each round, as documented; events are capped.
RECORDS = (keyspace.history, keyspace.events, keyspace.versions, keyspace.evaluations)
#: Measured: a few kilobytes of noise (client buffers, dictionaries that doubled).
MEMORY_NOISE_BYTES = 300_000
#: What RQ has of a job that waits or runs.
JOBS = re.compile(r"rq:(queue|wip|execution|executions):")


@pytest.mark.parametrize(
    ("clients", "rounds"),
    [(2, 15), pytest.param(8, 90, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])],
)
def test_keys_and_memory_after_many_rounds_are_those_after_ten(
    private_redis: EmbeddedRedis, tmp_path: Path, clients: int, rounds: int
) -> None:
    federation = Federation(private_redis, tmp_path, clients)
    try:
        quick = (f"round.cohort={clients}", "train.epochs=1")
        run = federation.begin("long", *quick, "run.rounds=10")
        federation.finish(run, 300)
        before = at_rest(federation, run)
        federation.begin("long", *quick, f"run.rounds={rounds}")
        federation.finish(run, 1000)
        after = at_rest(federation, run)
    finally:
        federation.close()

    for server in ("control", "data"):
        (keys, memory), (keys_after, memory_after) = before[server], after[server]
        print(
            f"{server}: {len(keys)} keys, {memory} bytes; after {rounds} more rounds {len(keys_after)}, {memory_after}"
        )
        assert keys_after == keys
        assert memory_after - memory < MEMORY_NOISE_BYTES


def at_rest(federation: Federation, run: str) -> dict[str, tuple[list[str], int]]:
    """Server -> (its keys with numbers and ids left out, sorted; bytes besides the records)."""
    control = federation.store.control

    def settled() -> bool:
        """Everything is scored, and no job waits or runs."""
        evaluations = control.evaluations.all(run).values()
        jobs = [key for key in control.redis.scan_iter("rq:*") if JOBS.match(key.decode())]
        return not jobs and all(value.get("state") == "done" for value in evaluations)

    wait_for("all processes to be at rest", settled, 120)
    rq_cleanup.sweep(federation.store)
    found = {}
    for name, server in (("control", control.redis), ("data", federation.store.data.redis)):
        keys = sorted(
            _general(key.decode())
            for key in server.scan_iter(count=1000)
            if not _passes(server, key.decode())
        )
        records = sum(
            int(server.memory_usage(record(run), samples=0) or 0) for record in RECORDS
        ) + sum(
            int(server.memory_usage(keyspace.client_events(client), samples=0) or 0)
            for client in federation.clients
        )
        found[name] = (keys, int(server.info("memory")["used_memory"]) - records)
    return found


def _passes(server: Redis, key: str) -> bool:
    """
    Whether a key is what RQ keeps for minutes of an ended job, or the list of such jobs.

    A client that reports its job done just after its round was cleaned leaves them, now and then.
    """
    return key.startswith("rq:finished:") or (key.startswith("rq:") and server.ttl(key) > 0)


def _general(key: str) -> str:
    return re.sub(r"[0-9a-f]{6,}|\d+", "N", key)
