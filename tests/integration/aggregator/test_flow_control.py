"""How much lies on the data server at a time, when it is full, and that nothing is lost by waiting."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fl_queue.protocol import tensor_layout
from fl_queue.store import Store, keyspace
from fl_queue.store.embedded.server_pair import EmbeddedRedis
from tests.support.federation import Federation, wait_for
from tests.support.manual_run import ManualRun

pytestmark = pytest.mark.timeout(120)

CLIENTS = "abcdefghijkl"
SIZE = 750_000
UPDATE = 4 * SIZE + 8
CHUNKS = "redis.inline_bytes=0"
#: A model of three megabytes, trained on noise.
TASK = """
import torch
from torch import nn
from torch.utils.data import TensorDataset
from fl_queue.tasks import ClientContext, ClientData, Task

class Bulky(Task):
    def build_model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(738, 1000), nn.Linear(1000, 10))

    def client_data(self, context: ClientContext) -> ClientData:
        draw = torch.Generator().manual_seed(context.share)
        data = TensorDataset(torch.randn(4, 738, generator=draw), torch.arange(4))
        return ClientData(data, data)
"""


class Watch:
    """Looks at a data server again and again: largest memory, and most updates at a time."""

    def __init__(self, urls: tuple[str, str]) -> None:
        self._store = Store(*urls)
        self._seen: list[set[str]] = []
        self.used = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Watch:
        self._before = self._memory()
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        self._thread.join()
        self._store.close()

    def most(self, digests: set[str]) -> int:
        """Most of these blobs that were there at a time."""
        return max(len(there & digests) for there in self._seen)

    def _memory(self) -> int:
        return int(self._store.data.redis.info("memory")["used_memory"])

    def _look(self) -> None:
        while not self._done.wait(0.002):
            self.used = max(self.used, self._memory() - self._before)
            keys = self._store.data.redis.keys("flq:update:*")
            self._seen.append({key.decode().split(":")[4] for key in keys})


@contextmanager
def all_at_once(push: Callable[[str], object]) -> Iterator[None]:
    """Every client pushes its update, each in a thread of its own."""
    threads = [threading.Thread(target=push, args=client, daemon=True) for client in CLIENTS]
    for thread in threads:
        thread.start()
    yield
    for thread in threads:
        thread.join()


def test_twelve_clients_keep_a_bound_of_two_updates(
    store: Store, redis_urls: tuple[str, str], tmp_path: Path
) -> None:
    bound = 2 * UPDATE
    hand = ManualRun(store, tmp_path, CLIENTS, SIZE, CHUNKS, f"redis.unmerged_bytes={bound}")
    digests = {tensor_layout.body_digest(hand.body(client)) for client in CLIENTS}
    with Watch(redis_urls) as watch, all_at_once(lambda client: hand.update(client, bound=bound)):
        done = hand.work()

    assert done == "committed: 12 of 12 updates in"
    assert watch.most(digests) <= 2
    # Two updates, an old and a new sum of twice their size, a new model, and what is on its way: on a
    # busy machine that lies in buffers of connections. Without the bound it is all twelve besides.
    assert watch.used < 13 * UPDATE
    assert hand.leftovers() == {}


def test_a_server_with_little_memory_is_never_full_of_updates(
    store: Store, redis_urls: tuple[str, str], tmp_path: Path
) -> None:
    # What is being sent or read lies in the server's buffers as well: a chunk for each connection.
    hand = ManualRun(store, tmp_path, CLIENTS, SIZE, CHUNKS, "redis.chunk_bytes=65536")
    digests = {tensor_layout.body_digest(hand.body(client)) for client in CLIENTS}
    used = int(store.data.redis.info("memory")["used_memory"])
    store.data.redis.config_set("maxmemory", used + 10 * UPDATE)
    room = store.data.admission.room(1 << 40)
    try:
        with Watch(redis_urls) as watch, all_at_once(hand.update):
            done = hand.work()
    finally:
        store.data.redis.config_set("maxmemory", 0)

    assert done == "committed: 12 of 12 updates in"
    assert watch.most(digests) <= room // UPDATE < 6


def test_while_a_server_is_full_clients_wait_and_an_aggregator_can_take_and_give_back(
    store: Store, tmp_path: Path
) -> None:
    hand = ManualRun(store, tmp_path, "abcd", 1000, CHUNKS)
    for client in "abc":
        hand.update(client)
    store.data.redis.config_set("maxmemory", 1)
    last = threading.Thread(target=hand.update, args="d", daemon=True)
    try:
        last.start()
        intake = hand.intake()
        hand.take(intake, 3)
        received = intake.received()
        store.data.taken.disown(hand.run, intake.incarnation.fence)
        last.join(1.0)
        was_waiting = last.is_alive()
    finally:
        store.data.redis.config_set("maxmemory", 0)
    last.join(20)

    assert (received, was_waiting) == (3, True)
    assert store.data.results.count(hand.run) == 4
    assert hand.work() == "committed: 4 of 4 updates in"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_eight_real_clients_keep_a_bound_of_two_updates(
    private_redis: EmbeddedRedis, tmp_path: Path
) -> None:
    (tmp_path / "bulky.py").write_text(TASK)
    path = os.pathsep.join((str(tmp_path), str(Path.cwd())))
    federation = Federation(private_redis, tmp_path, 8, {"PYTHONPATH": path}, allow="bulky:Bulky")
    try:
        with Watch((private_redis.url, private_redis.blob_url)) as watch:
            run = federation.begin(
                "bulky", "run.task=bulky:Bulky", "run.rounds=2", "round.cohort=8", CHUNKS,
                f"redis.unmerged_bytes={2 * UPDATE}",
            )  # fmt: skip
            state = federation.finish(run, 200)
        records = federation.committed(run)
        wait_for("room", lambda: not federation.store.data.redis.keys(keyspace.admitted(run, "*")))
    finally:
        federation.close()

    assert (state.state, [len(record.accepted) for record in records]) == ("completed", [8, 8])
    assert watch.most({digest for record in records for digest in record.accepted.values()}) <= 2
    assert watch.used < 12 * UPDATE
