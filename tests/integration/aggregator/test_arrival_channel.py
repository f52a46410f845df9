"""Who is cut off from what announces arrivals looks once a second, and loses nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from fl_queue.store import Store, keyspace
from tests.support.manual_run import ManualRun

#: More than Redis keeps for a subscriber (client-output-buffer-limit pubsub 32mb).
TOO_MUCH = 34 << 20


def subscribers(client: redis.Redis) -> list[str]:
    return [entry["id"] for entry in client.client_list(_type="pubsub")]


def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def flooded(client: redis.Redis) -> None:
    client.publish(keyspace.ARRIVALS, bytes(TOO_MUCH))


def killed(client: redis.Redis) -> None:
    for entry in subscribers(client):
        client.client_kill_filter(_id=entry)


@pytest.mark.parametrize("cut", [flooded, killed])
def test_a_lost_doorbell_is_made_up_for(store: Store, cut: Callable[[redis.Redis], None]) -> None:
    other = store.data.redis
    with store.data.results.doorbell() as bell:
        before = subscribers(other)
        cut(other)
        until(lambda: not set(before) & set(subscribers(other)))
        assert bell.wait(0.1) is None

        def rings() -> bool:
            other.publish(keyspace.ARRIVALS, "demo-3f2a9c")
            return bell.wait(0.2) == "demo-3f2a9c"

        until(rings)
    until(lambda: not subscribers(other))


@pytest.mark.parametrize("cut", [flooded, killed])
def test_an_aggregator_that_is_cut_off_from_it_goes_on(
    store: Store, tmp_path: Path, cut: Callable[[redis.Redis], None]
) -> None:
    hand = ManualRun(store, tmp_path, "ab", 10, "round.quorum=2")
    hand.update("a")

    def attack() -> None:
        until(lambda: subscribers(store.data.redis))
        before = set(subscribers(store.data.redis))
        cut(store.data.redis)
        until(lambda: not before & set(subscribers(store.data.redis)))
        hand.update("b")

    attacker = threading.Thread(target=attack)
    attacker.start()
    try:
        assert hand.work().startswith("committed: ")
    finally:
        attacker.join()
    assert hand.record.accepted.keys() == {"a", "b"}


def test_an_aggregator_that_may_not_listen_at_all_looks_once_a_second(
    store: Store, tmp_path: Path
) -> None:
    hand = ManualRun(store, tmp_path, "a", 10)
    store.data.redis.execute_command("ACL", "SETUSER", "default", "resetchannels")
    try:
        with store.data.results.doorbell() as bell:
            assert bell.wait(0.01) is None
        hand.update("a")
        assert hand.work().startswith("committed: ")
    finally:
        store.data.redis.execute_command("ACL", "SETUSER", "default", "allchannels")
