"""Commands of people while a Redis server is gone, is silent, or says not now: one line, exit 5, soon."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from fl_queue import config, names, runs
from fl_queue.embedded import EmbeddedRedis, start
from fl_queue.store import Store
from tests.conftest import chosen_server

#: What needs both servers.
BOTH = (
    ["start-round", "demo", "--no-wait", "--run", "other"],
    ["resume", "r"],
    ["delete", "r", "--yes"],
    ["worker", "aggregator"],
)
#: What the control server alone can answer.
CONTROL = (
    ["status"],
    ["status", "r", "--json"],
    ["history", "r"],
    ["clients"],
    ["events", "r"],
    ["cancel", "r"],
)
#: 30 s are promised, on a machine that has time for the imports; without a limit it was 130 s and more.
LONGEST_S = 60.0


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    """Servers of its own, with a run of no clients."""
    with start(tmp_path / "state", server=chosen_server()) as made:
        with Store(made.url, made.blob_url) as store:
            runs.start_run(store, "r", config.load("mnist-3v7", (), {}), 1)
        yield made


@contextmanager
def stopped(servers: EmbeddedRedis, role: str) -> Iterator[None]:
    pid = servers.pids[role]
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def ask(
    servers: EmbeddedRedis, folder: Path, arguments: Sequence[str]
) -> tuple[float, subprocess.CompletedProcess[str]]:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "fl_queue", *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=folder,
        env={
            **os.environ,
            "FLQ_STATE_DIR": str(servers.state_dir),
            "FLQ_REDIS_URL": servers.url,
            "FLQ_REDIS_BLOB_URL": servers.blob_url,
        },
    )
    return time.monotonic() - began, done


def ask_all(
    servers: EmbeddedRedis, folder: Path, commands: Sequence[Sequence[str]]
) -> dict[str, tuple[float, subprocess.CompletedProcess[str]]]:
    with ThreadPoolExecutor(len(commands)) as pool:
        found = pool.map(lambda one: ask(servers, folder, one), commands)
        return dict(zip((" ".join(one) for one in commands), found, strict=True))


def check_refusals(
    found: dict[str, tuple[float, subprocess.CompletedProcess[str]]], word: str
) -> None:
    """That each ended with exit code 5 and one line with the word in it."""
    for command, (took_s, done) in found.items():
        told = done.stderr.strip().splitlines()
        assert (done.returncode, len(told)) == (5, 1), f"{command}: {done.stderr}{done.stdout}"
        assert "Redis" in told[0], command
        assert word in told[0], command
        assert took_s < LONGEST_S, command


def test_a_silent_control_server_holds_no_command(servers: EmbeddedRedis, tmp_path: Path) -> None:
    with stopped(servers, "control"):
        found = ask_all(
            servers,
            tmp_path,
            [*BOTH[:1], *CONTROL[:1], *CONTROL[-1:], ["watch", "r"], ["worker", "aggregator"]],
        )
    check_refusals(found, "not reachable")


def test_a_silent_data_server_holds_no_command(servers: EmbeddedRedis, tmp_path: Path) -> None:
    with stopped(servers, "data"):
        found = ask_all(servers, tmp_path, BOTH)
    check_refusals(found, "not reachable")


@pytest.mark.parametrize("state", ["silent", "gone"])
def test_reading_and_cancelling_need_no_data_server(
    servers: EmbeddedRedis, tmp_path: Path, state: str
) -> None:
    if state == "gone":
        os.kill(servers.pids["data"], signal.SIGKILL)
        found = ask_all(servers, tmp_path, CONTROL)
    else:
        with stopped(servers, "data"):
            found = ask_all(servers, tmp_path, CONTROL)
    for command, (took_s, done) in found.items():
        assert "Traceback" not in done.stderr, command
        assert "Redis at" not in done.stderr, f"{command}: {done.stderr}"
        assert took_s < LONGEST_S, command
        assert done.returncode == 0, f"{command}: {done.stderr}"
    assert "is it running?" in found["status r --json"][1].stdout


def test_a_server_that_takes_no_writes_gets_one_line(
    servers: EmbeddedRedis, tmp_path: Path
) -> None:
    with redis.Redis.from_url(servers.url) as client:
        client.config_set("min-replicas-to-write", 1)
    changing = [BOTH[0], ["cancel", "r"], ["enroll", "c", "-o", "c.toml"]]
    check_refusals(ask_all(servers, tmp_path, changing), "NOREPLICAS")
    with Store(servers.url, servers.blob_url) as store:
        assert runs.find_run(store, "r").active


def test_an_error_reply_that_nobody_expects_is_one_line(
    servers: EmbeddedRedis, tmp_path: Path
) -> None:
    with redis.Redis.from_url(servers.url) as client:
        client.delete(names.CLIENTS)
        client.set(names.CLIENTS, "no zset")
        client.acl_setuser(
            "default", enabled=True, nopass=True, keys=["*"], commands=["+@all", "-zrange"]
        )
    found = ask_all(servers, tmp_path, [["clients"]])
    check_refusals(found, "NOPERM")
