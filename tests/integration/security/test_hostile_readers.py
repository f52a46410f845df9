"""Whatever is in Redis, of whatever type: readers and the healer end in a documented error at worst, and touch no other folder."""

from __future__ import annotations

import random
import resource
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from fl_queue.cli import cli
from fl_queue.config import loading
from fl_queue.coordinator.operations.healer import Healer
from fl_queue.coordinator.rounds import runs
from fl_queue.errors import FLQueueError
from fl_queue.reporting import doctor, exporters, run_status
from fl_queue.reporting.exporters import prometheus
from fl_queue.store import Store, keyspace
from fl_queue.store.unreadable import Unreadable
from fl_queue.web import view_model

pytestmark = pytest.mark.timeout(300)

RUN = "demo-3f2a9c"
OTHER = "good-3f2a9c"
D = "0" * 64
#: What may stand wherever a value is read.
VALUES: list[bytes] = [
    b"", b"x", b"..", b"/", b"../../victim", b"\0", b"\xff\xfe", b"[/]", b"\x1b]0;pwned\x07", b"NaN", b"Infinity",
    b"-1", b"9" * 30, b"9" * 5000, b"1e999", b"\xc2\xb2", b"null", b"true", b"[]", b"{}", b"[[]]", b'"x"', b'["../x"]',
    b'{"../x": 1}', b'{"a": null}', b'{"digest": "../../victim", "round": 1}', b'{"digest": 7}', b"[" * 5000,
    b'{"job": "x"}', b'{"state": "done"}', b'{"state": "done", "finished": {"loss": "x"}}', b'"\\ud800"', b"x" * 100_000,
    b'[{"from_round": 0, "config": {}}]', b'[{"config": {"run": 7}}]', b'{"tensors": [], "aliases": {}}',
]  # fmt: skip


def keys(run: str) -> list[str]:
    """Every key of the control server that a reader or the healer looks at."""
    return [
        keyspace.RUNS, keyspace.CLIENTS, keyspace.ENROLLED, keyspace.DELETED, keyspace.RESTORED, keyspace.CLOCK, keyspace.HEALER,
        keyspace.run(run), keyspace.config(run), keyspace.manifest(run), keyspace.versions(run), keyspace.history(run),
        keyspace.late(run), keyspace.accepted(run), keyspace.evaluations(run), keyspace.sites(run), keyspace.events(run),
        keyspace.round_(run, 1), keyspace.round_updates(run, 1), keyspace.round_rejected(run, 1), keyspace.round_jobs(run, 1),
        keyspace.client("a"), keyspace.client_holder("a"), keyspace.client_events("a"), keyspace.client_facts("a", run),
        keyspace.worker("a_00"), keyspace.worker("aggregator-00"), "rq:queues", "rq:workers", "rq:queue:flq-client-a",
    ]  # fmt: skip


#: Fields that mean something in some hash.
FIELDS = [
    b"name", b"state", b"reason", b"version", b"digest", b"round", b"rounds_wanted", b"segment", b"population",
    b"initial", b"created_at", b"download", b"server_state", b"restored_from", b"left_out", b"purpose", b"cohort",
    b"eligible", b"quorum", b"deadline_s", b"base_version", b"base_digest", b"fence", b"w_max", b"scales", b"carried",
    b"makers", b"mode", b"a", b"../x", b"0", b"1", b"\xff", b"demo", b"settling_s", b"ticked_at", b"aggregator", b"signed",
]  # fmt: skip
KINDS = ("hash", "list", "zset", "set", "stream", "string")


def write(redis: Any, key: str, kind: str, field: bytes, value: bytes) -> None:
    """Put a value there: beside what the key holds, or in place of it when that is of another type."""
    held = redis.type(key)
    if held != kind.encode():
        redis.delete(key)
    commands: dict[str, Callable[[], Any]] = {
        "hash": lambda: redis.hset(key, field, value),
        "list": lambda: redis.rpush(key, value),
        "zset": lambda: redis.zadd(key, {value: 1e300}),
        "set": lambda: redis.sadd(key, value),
        "stream": lambda: redis.xadd(key, {b"event": value, field: value}),
        "string": lambda: redis.set(key, value),
    }
    commands[kind]()


class World:
    """Two runs, one of them for an attacker, beside a private folder."""

    def __init__(self, store: Store, urls: tuple[str, str], folder: Path) -> None:
        self.store, self.urls = store, urls
        self.victim, self.state_dir, self.out = folder / "victim", folder / "state", folder / "out"
        for each in (self.victim, self.state_dir, self.out):
            each.mkdir()
        (self.victim / "precious.txt").write_text("mine")

    def fresh(self) -> None:
        """Reset to the state before an attack."""
        redis = self.store.control.redis
        redis.flushall()
        made = loading.load("mnist-3v7", environ={})
        for run in (RUN, OTHER):
            state = runs.start_run(self.store, run.partition("-")[0], made, 1)
            for key in (keyspace.run, keyspace.config, keyspace.events):
                redis.rename(key(state.run_id), key(run))
            redis.hset(keyspace.RUNS, state.name, run)
            redis.hset(keyspace.run(run), mapping={"version": "1", "round": "1", "digest": D})
            redis.hset(keyspace.versions(run), "1", f'{{"digest":"{D}","round":1}}')
        self.store.control.leases.hold(keyspace.client_holder("a"), "t", 60, {"worker": "a_00"})
        self.store.control.unreadable = Unreadable()

    def readers(self) -> Iterator[Callable[[], object]]:
        """Readers of Redis for users and for other programs, and the healer."""
        store = self.store
        yield lambda: view_model.parts(store, "demo")
        yield lambda: view_model.log(store, RUN, "")
        yield lambda: view_model.log(store, RUN, "0-0")
        yield lambda: view_model.history(store, RUN)
        yield lambda: run_status.statuses(store, run_status.living_runs(store))
        yield lambda: run_status.history(store, RUN)
        yield lambda: run_status.receipts(store, runs.find_run(store, "demo"), 1, "a")
        yield lambda: run_status.clients(store)
        yield (
            lambda: (
                doctor.clients.examine_workers(store)
                + doctor.clients.examine_queues(store)
                + doctor.entries.unreadable(store)
            )
        )
        yield lambda: prometheus.text(prometheus.registry(store))
        yield lambda: exporters.numbers_of(store, RUN)
        yield lambda: Healer(store, self.state_dir).heal(RUN)
        yield Healer(store, self.state_dir).tick

    def commands(self) -> None:
        """Commands that users type."""
        where = {"FLQ_REDIS_URL": self.urls[0], "FLQ_REDIS_BLOB_URL": self.urls[1]}
        where["FLQ_STATE_DIR"] = str(self.state_dir)
        for words in (
            ("status",), ("status", "demo"), ("clients", "--json"), ("history", "demo"), ("events", "demo"),
            ("doctor",), ("metrics", "demo", str(self.out), "--to=csv"), ("delete", "demo", "--yes"),
        ):  # fmt: skip
            done = CliRunner().invoke(cli, list(words), env=where, standalone_mode=False)
            documented = (FLQueueError, click.ClickException, type(None))
            assert isinstance(done.exception, documented), (words, done.exception)

    def look(self) -> None:
        """Call all readers; each ends well, or with a documented error."""
        for read in self.readers():
            with suppress(FLQueueError):
                read()

    def check(self) -> None:
        """Nothing outside our folders was touched, and the run beside it can be read."""
        assert [path.name for path in self.victim.iterdir()] == ["precious.txt"]
        below = {self.victim.name, self.state_dir.name, self.out.name}
        assert {path.name for path in self.victim.parent.iterdir()} == below


@pytest.fixture
def world(store: Store, redis_urls: tuple[str, str], tmp_path: Path) -> World:
    folder = tmp_path / "world"
    folder.mkdir()
    return World(store, redis_urls, folder)


def key_kinds() -> list[tuple[str, str]]:
    return [(key, kind) for key in keys(RUN) for kind in KINDS]


SHARES = 40


@pytest.mark.parametrize(
    "number", [0, *(pytest.param(share, marks=pytest.mark.slow) for share in range(1, SHARES))]
)
def test_every_reader_ends_well_whatever_each_key_holds(world: World, number: int) -> None:
    """A walk over the keys and types, with values that a seed draws: each share has other keys."""
    draw, found = random.Random(number), list[str]()
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for key, kind in key_kinds()[number::SHARES]:
        world.fresh()
        for value in draw.sample(VALUES, 6):
            write(world.store.control.redis, key, kind, draw.choice(FIELDS), value)
        try:
            world.look()
        except Exception as exc:  # noqa: BLE001
            found.append(
                f"{key} as a {kind}: {type(exc).__name__} {str(exc)[:100]} at {traceback.extract_tb(exc.__traceback__)[-1]}"
            )
        world.check()
    assert found == []
    assert time.monotonic() - began < 240
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB


@pytest.mark.parametrize(
    "key", [keyspace.RUNS, keyspace.run(RUN), keyspace.history(RUN), keyspace.DELETED]
)
def test_commands_end_in_one_line(world: World, key: str) -> None:
    world.fresh()
    kind = {keyspace.history(RUN): "list", keyspace.DELETED: "zset"}.get(key, "hash")
    for field in (b"demo", b"name", b"digest"):
        write(world.store.control.redis, key, kind, field, str(world.victim).encode())
    world.commands()
    world.check()
