"""Real runs on servers behind Redis Sentinel, whose primaries are replaced while they train and commit."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest

from fl_queue.store import keyspace
from fl_queue.store.embedded.server_pair import EmbeddedRedis
from tests.support.federation import Federation, wait_for
from tests.support.redis_sentinel import Pair, Sentinels

CLIENTS = ("run.rounds=2", "round.cohort=2")


@dataclass(frozen=True)
class Place:
    """Where a federation finds its servers."""

    url: str
    blob_url: str
    state_dir: Path


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, no_process_left: None) -> Iterator[Sentinels]:
    with Sentinels(tmp_path_factory.mktemp("watched")) as made:
        yield made


@pytest.fixture(scope="module")
def federation(
    tmp_path_factory: pytest.TempPathFactory, watched: Sentinels
) -> Iterator[Federation]:
    folder = tmp_path_factory.mktemp("failover")
    place = Place(watched.url(watched.control), watched.url(watched.data), folder / "state")
    environment = {"FLQ_REDIS_URL": place.url, "FLQ_REDIS_BLOB_URL": place.blob_url}
    made = Federation(
        cast(EmbeddedRedis, place), folder, 2, environment, evaluator=False, forked=True
    )
    try:
        yield made
    finally:
        made.close()


def trainings(federation: Federation, name: str) -> int:
    """How often clients began to train, by their logs: a failover may lose their events."""
    logs = [(federation.folder / f"{client}.log").read_text() for client in federation.clients]
    return sum(line.startswith(f"run {name}, round ") for log in logs for line in log.splitlines())


@pytest.fixture
def guarded(watched: Sentinels) -> Iterator[None]:
    """A control server that takes no writes while it has no replica, as docs/reference/redis.md advises."""
    watched.restore(watched.control)
    watched.control.configure("min-replicas-max-lag", 2)
    watched.control.configure("min-replicas-to-write", 1)
    yield
    watched.control.configure("min-replicas-to-write", 0)


def go_through(
    federation: Federation, watched: Sentinels, point: str, way: Callable[[Sentinels, Pair], object]
) -> int:
    """Have both primaries replaced while a process is at a point; returns how often clients trained."""
    name = f"{point}-{way.__name__}".replace(".", "-").replace("_", "-")
    watched.restore_both()
    calm = federation.digests_of(name, *CLIENTS)
    before = trainings(federation, name)
    held = federation.arm(point, "stop", "site-1_" if point == "client.trained" else "")
    run = federation.begin(name, *CLIENTS)
    wait_for("a process at the point", held.exists)
    pid = int(wait_for("its pid", held.read_text))

    watched.at_once(lambda pair: way(watched, pair))
    os.kill(pid, signal.SIGCONT)

    state = federation.finish(run, 200)
    assert (state.state, state.reason, state.left_out) == ("completed", "", {})
    committed = federation.committed(run)
    assert [sorted(record.accepted) for record in committed] == [["site-1", "site-2"]] * 2
    assert federation.free(run) == calm, federation.beside_calm(run)
    return trainings(federation, name) - before


POINTS = pytest.mark.parametrize("point", ["client.trained", "checkpoint.written"])


@pytest.mark.timeout(300)
@POINTS
def test_a_run_goes_on_at_the_new_primaries_with_the_same_bits(
    federation: Federation, watched: Sentinels, point: str
) -> None:
    trained = go_through(federation, watched, point, Sentinels.kill_primary)

    assert trained == 4  # Two clients, two rounds: no training was lost.


@pytest.mark.timeout(300)
@POINTS
@pytest.mark.usefixtures("guarded")
def test_a_planned_failover_repeats_no_training_where_nothing_is_written_without_a_replica(
    federation: Federation, watched: Sentinels, point: str
) -> None:
    assert go_through(federation, watched, point, Sentinels.fail_over) == 4


@pytest.mark.timeout(300)
@POINTS
def test_rounds_that_the_old_primary_took_after_a_planned_failover_are_made_again(
    federation: Federation, watched: Sentinels, point: str
) -> None:
    # It takes writes for some seconds more, whole rounds of so quick a run, and all of them are lost.
    assert go_through(federation, watched, point, Sentinels.fail_over) >= 4


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "lost",
    [("control",), pytest.param(("control", "data"), marks=pytest.mark.slow)],
    ids=["control", "control-and-data"],
)
def test_a_round_that_a_late_replica_has_not_seen_is_made_again_with_the_same_bits(
    federation: Federation, watched: Sentinels, lost: tuple[str, ...]
) -> None:
    name = f"lost-{len(lost)}"
    watched.restore_both()
    calm = federation.digests_of(name, *CLIENTS)
    first = federation.arm("client.trained", "stop", "site-1_")
    run = federation.begin(name, *CLIENTS)
    wait_for("site-1 in round 1", first.exists)
    receipts = federation.store.control.receipts.of_round
    wait_for("site-2's update of round 1", lambda: "site-2" in receipts(run, 1))
    pid = int(wait_for("its pid", first.read_text))
    second = federation.arm("client.trained", "stop", "site-2_")

    pairs = [getattr(watched, role) for role in lost]
    for pair in pairs:
        pair.cut_off_replica()
    os.kill(pid, signal.SIGCONT)
    wait_for("site-2 in round 2", second.exists)
    assert federation.round_of(run) == 2  # Round 1 is committed, and only the primary knows.
    pid = int(wait_for("its pid", second.read_text))
    for pair in pairs:
        watched.kill_primary(pair)
    assert watched.control.primary.client.hget(keyspace.run(run), "round") == b"1"
    with suppress(
        ProcessLookupError
    ):  # Its worker may have ended it: there is no round 2 any more.
        os.kill(pid, signal.SIGCONT)

    state = federation.finish(run, 200)
    assert (state.state, state.reason, state.left_out) == ("completed", "", {})
    assert [record.round for record in federation.committed(run)] == [1, 2]
    assert federation.free(run) == calm, federation.beside_calm(run)
