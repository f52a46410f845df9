"""Commands of users while a Redis server is gone, silent, or refuses for now: one line, exit 5, soon."""

from __future__ import annotations

import os
import re
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

from fl_queue.config import loading
from fl_queue.coordinator.rounds import runs
from fl_queue.reporting import diagnosis
from fl_queue.store import Store, keyspace
from fl_queue.store.embedded.server_pair import EmbeddedRedis, start
from tests.conftest import chosen_server
from tests.support.federation import wait_for

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
MAX_S = 60.0


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    """Servers of its own, with a run of no clients."""
    with start(tmp_path / "state", server=chosen_server()) as made:
        with Store(made.url, made.blob_url) as store:
            runs.start_run(store, "r", loading.load("mnist-3v7", (), {}), 1)
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
        lines = done.stderr.strip().splitlines()
        assert (done.returncode, len(lines)) == (5, 1), f"{command}: {done.stderr}{done.stdout}"
        assert "Redis" in lines[0], command
        assert word in lines[0], command
        assert took_s < MAX_S, command


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
        assert took_s < MAX_S, command
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


def test_an_unexpected_error_reply_is_one_line(servers: EmbeddedRedis, tmp_path: Path) -> None:
    with redis.Redis.from_url(servers.url) as client:
        client.delete(keyspace.CLIENTS)
        client.set(keyspace.CLIENTS, "no zset")
        client.acl_setuser(
            "default", enabled=True, nopass=True, keys=["*"], commands=["+@all", "-zrange"]
        )
    found = ask_all(servers, tmp_path, [["clients"]])
    check_refusals(found, "NOPERM")


def test_watch_reports_an_outage_once_and_its_end(servers: EmbeddedRedis, tmp_path: Path) -> None:
    with Store(servers.url, servers.blob_url) as store:
        run = runs.find_run(store, "r").run_id
    where = ["--redis-url", servers.url, "--blob-url", servers.blob_url]
    process = subprocess.Popen(
        [sys.executable, "-m", "fl_queue", "watch", "r", *where],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "FLQ_STATE_DIR": str(servers.state_dir)},
    )
    lines: list[str] = []

    def read_to(word: str) -> None:
        """Read its output up to a line with the word; a process that hangs fails by the test's limit."""
        assert process.stderr is not None
        while not lines or word not in lines[-1]:
            line = process.stderr.readline()
            assert line, f"ended before {word!r}: {lines}"
            lines.append(line)

    try:
        with redis.Redis.from_url(servers.url) as client:
            wait_for(
                "it to follow the events",
                lambda: any(entry["cmd"] == "xread" for entry in client.client_list()),
            )
        servers.kill("control")
        read_to("trying on for 10 minutes")
        servers.restart("control")
        read_to("Redis is back")
        with redis.Redis.from_url(servers.url) as client:
            client.hset(keyspace.run(run), mapping={"state": "completed", "version": 0})
        printed, errors = process.communicate(timeout=MAX_S)
    finally:
        process.kill()
        process.wait()

    assert process.returncode == 0, errors
    errors = "".join(lines) + errors
    assert [errors.count(words) for words in ("trying on", "Redis is back", "Traceback")] == [
        1,
        1,
        0,
    ]
    assert "round" in printed.lower()  # Its table.


def test_between_rounds_without_an_aggregator_a_reason_has_its_age(
    servers: EmbeddedRedis, tmp_path: Path
) -> None:
    """What an aggregator found last is no news once it is gone: it is named first, the reason is dated."""
    reason = "1 clients are alive; start more workers"
    with Store(servers.url, servers.blob_url) as store:
        run = runs.find_run(store, "r")
        found_at = f"{store.control.now() - 3600:.3f}"
        store.control.redis.hset(
            keyspace.run(run.run_id), mapping={"reason": reason, "reason_at": found_at}
        )
        without = ask_all(servers, tmp_path, [["status", "r"], ["status"]])
        store.control.leases.hold(
            keyspace.worker("aggregator-1"), "t", 600, {"role": "aggregator", "process": ""}
        )
        _, having = ask(servers, tmp_path, ["status", "r"])

    output = without["status r"][1].stdout.splitlines()
    assert output[0] == f"r ({run.run_id}) is training: between rounds: {diagnosis.NO_AGGREGATOR}"
    assert output[1] == f"  {diagnosis.NO_AGGREGATOR}"
    assert re.fullmatch(rf"  before that: {reason} \(found 36\d\d s ago\)", output[2])
    assert diagnosis.NO_AGGREGATOR in without["status"][1].stdout
    # One that is alive looks each second: the reason is current.
    line = having.stdout.splitlines()[0]
    assert re.search(rf"is training: between rounds: {reason} \(found 3[67]\d\d s ago\)$", line)
    assert diagnosis.NO_AGGREGATOR not in having.stdout


def test_a_control_server_that_takes_no_writes_is_named_not_the_missing_leases(
    servers: EmbeddedRedis, tmp_path: Path
) -> None:
    """Every lease runs out then, also of workers that live: to start more of them does not help."""
    with redis.Redis.from_url(servers.url) as client:
        client.config_set("min-replicas-to-write", 1)
    _, done = ask(servers, tmp_path, ["status", "r"])

    assert done.returncode == 0, done.stderr
    assert diagnosis.NO_AGGREGATOR not in done.stdout
    first, second = done.stdout.splitlines()[:2]
    for line in (first, second):
        assert "control server" in line
        assert "NOREPLICAS" in line
        assert line.endswith("until then it is unknown which workers are alive")
