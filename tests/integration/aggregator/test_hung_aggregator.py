"""An aggregator that hangs is ended and replaced; one that computes for long is not."""

from __future__ import annotations

import multiprocessing
import signal
from pathlib import Path

import pytest

from fl_queue.coordinator.aggregator import ownership
from fl_queue.coordinator.aggregator.collector import RoundAggregator
from fl_queue.store import Store, keyspace
from tests.support.manual_run import ManualRun

SLOW = """
import time
import numpy as np
from fl_queue.strategies.base import Strategy

class Hanging(Strategy):
    def next_model(self, *args, **kwargs):
        time.sleep(10**6)
        yield

class Computing(Strategy):
    def next_model(self, *args, **kwargs):
        until = time.monotonic() + 2 * STILL_S
        while time.monotonic() < until:
            sum(range(1000))
        yield from super().next_model(*args, **kwargs)

class Dawdling(Strategy):
    def next_model(self, *args, **kwargs):
        for block in super().next_model(*args, **kwargs):
            for part in np.array_split(block, min(20, len(block))):
                time.sleep(STILL_S / 10)  # As a slow disk does.
                yield part
""".replace("STILL_S", "3.0")


@pytest.fixture(autouse=True)
def soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Own strategies, and an aggregator that is taken to hang after three seconds."""
    (tmp_path / "slowstrategy.py").write_text(SLOW)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(ownership, "STILL_S", 3.0)
    monkeypatch.setattr(ownership, "EXTEND_S", 0.2)


def aggregate(store: Store, folder: Path, strategy: str) -> tuple[int, ManualRun]:
    """Exit status of an aggregator's process that merges a round by a strategy."""
    hand = ManualRun(store, folder, "ab", 100, f"aggregation.strategy=slowstrategy:{strategy}")
    for client in hand.clients:
        hand.update(client)

    def work() -> None:
        own = Store(store.servers.url, store.servers.blob_url)
        RoundAggregator(own, hand.run, 1, hand.job(), folder, ("slowstrategy:*",)).work()

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(120)
    process.kill()
    process.join()
    assert process.exitcode is not None
    return process.exitcode, hand


@pytest.mark.timeout(180)
def test_an_aggregator_that_hangs_ends_and_reports_where(store: Store, tmp_path: Path) -> None:
    status, hand = aggregate(store, tmp_path, "Hanging")
    events = store.control.events.read({keyspace.events(hand.run): "0-0"}, None)
    (hung,) = [event for _, _, event in events if event["event"] == "aggregator_hung"]

    assert status == -signal.SIGKILL
    assert (hung["round"], hung["still_s"] >= 3) == (1, True)
    assert hung["where"].startswith("next_model, line 8 of ")
    assert hand.round.open


@pytest.mark.timeout(180)
@pytest.mark.parametrize("strategy", ["Computing", "Dawdling"])
def test_an_aggregator_that_gets_somewhere_is_left_alone(
    store: Store, tmp_path: Path, strategy: str
) -> None:
    status, hand = aggregate(store, tmp_path, strategy)

    assert (status, hand.state.version) == (0, 1)
