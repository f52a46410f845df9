"""Real runs on servers behind Redis Sentinel, whose primaries end while they train and while they commit."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest

from fl_queue.embedded import EmbeddedRedis
from tests.federation import Federation, wait_for
from tests.sentinel import Sentinels

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
    made = Federation(cast(EmbeddedRedis, place), folder, 2, environment)
    try:
        yield made
    finally:
        made.close()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("point", ["client.trained", "checkpoint.written"])
def test_a_run_goes_on_at_the_new_primaries_with_the_same_bits(
    federation: Federation,
    watched: Sentinels,
    point: str,
) -> None:
    name = point.replace(".", "-")
    for pair in (watched.control, watched.data):
        watched.restore(pair)
    calm = federation.digests_of(name, *CLIENTS)
    held = federation.arm(point, "stop", "site-1_" if point == "client.trained" else "")
    run = federation.begin(name, *CLIENTS)
    wait_for("a process at the point", held.exists)
    pid = int(wait_for("its pid", held.read_text))

    for pair in (watched.control, watched.data):
        watched.kill_primary(pair)
    os.kill(pid, signal.SIGCONT)

    assert federation.finish(run, 200).state == "completed"
    assert federation.trained(run) == 4  # Two clients, two rounds: no training was lost.
    committed = federation.committed(run)
    assert [sorted(record.accepted) for record in committed] == [["site-1", "site-2"]] * 2
    assert federation.free(run) == calm
