"""A worker and its training processes: every way in which one can end, or send what is no answer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rq.timeouts import JobTimeoutException, UnixSignalDeathPenalty

from fl_queue.client.trainer.environment import of_trainers
from fl_queue.client.trainer.process import FORK_S, STOP_S, ForkServerProcess
from fl_queue.client.trainer.protocol import MAX_BYTES
from fl_queue.client.trainer.trainers import Limits, Trainers
from fl_queue.common.processes import children
from fl_queue.errors import RoundEnded, TrainingLost
from tests.support.checkout import ROOT
from tests.support.federation import wait_for
from tests.support.small_trainer import frame, message

COMMAND = [sys.executable, "-m", "tests.support.small_trainer"]
KEY = ("run-aaaaaa", 0)


def server(fork_s: float = FORK_S) -> ForkServerProcess:
    return ForkServerProcess(COMMAND, {**os.environ, "PYTHONPATH": str(ROOT)}, fork_s)


@pytest.fixture
def trainers() -> Iterator[Trainers]:
    made = Trainers(server(), Limits())
    try:
        yield made
    finally:
        made.close()


def ask(trainers: Trainers, do: str, key: tuple[str, int] = KEY, **more: Any) -> dict[str, Any]:
    return trainers.ask(key, "job-1", {"do": do, **more}, lambda body: None)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_one_process_serves_a_run_and_another_one_the_next(trainers: Trainers) -> None:
    first, second = ask(trainers, "echo", value=[1, None]), ask(trainers, "count", to=0)
    other = ask(trainers, "echo", ("run-bbbbbb", 0))

    assert first["body"] == {"do": "echo", "value": [1, None]}
    assert second["pid"] == first["pid"] != other["pid"]
    assert second["before"] == ["echo"]
    assert other["before"] == []
    # Another segment of its config: its first process is not needed any more.
    assert ask(trainers, "echo", ("run-aaaaaa", 1))["pid"] not in (first["pid"], other["pid"])
    assert not is_alive(first["pid"])


def test_progress_comes_in_order_and_before_the_answer(trainers: Trainers) -> None:
    found: list[int] = []
    trainers.ask(KEY, "job", {"do": "count", "to": 500}, lambda body: found.append(body["number"]))

    assert found == list(range(500))


def test_large_requests_and_answers_pass(trainers: Trainers) -> None:
    text = "x" * (6 << 20)

    assert ask(trainers, "echo", text=text)["body"]["text"] == text


@pytest.mark.parametrize(
    ("deed", "more", "reason"),
    [
        ("exit", {}, "ended without an answer, with exit status 0"),
        ("exit", {"status": 3}, "ended without an answer, with exit status 3"),
        ("raise_", {}, "ended without an answer, with exit status 1"),
        ("kill", {"signal": 9}, "was killed from outside by signal 9"),
        ("kill", {"signal": 11}, r"crashed with signal 11 \(SIGSEGV\)"),
        ("close", {}, "closed its connection"),
        ("leave", {"then": "exit"}, "exit status 0"),
    ],
)
def test_a_process_that_ends_fails_its_job_with_the_reason_and_leaves_nothing(
    trainers: Trainers, deed: str, more: dict[str, Any], reason: str
) -> None:
    pid = ask(trainers, "echo")["pid"]
    started = time.monotonic()
    with pytest.raises(TrainingLost, match=reason) as caught:
        ask(trainers, deed, **more)

    assert caught.value.public == str(caught.value)
    assert time.monotonic() - started < 5
    assert not is_alive(pid)
    assert trainers.pids == {}
    assert ask(trainers, "echo")["before"] == []


FOREIGN = {
    "garbage": b"garbage that is no frame, and long enough to be read as a length",
    "no json": frame(b"{"),
    "foreign id": message("answer", "job-1/0000000000000000", {}),
    "idle in place of an answer": message("idle", "job-1/0000000000000000", {"jobs": 1}),
    "request": message("request", "", {}),
    "17 MiB": (17 << 20).to_bytes(4, "little"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_anything_but_an_answer_fails_the_job_and_ends_the_process(
    trainers: Trainers, name: str
) -> None:
    pid = ask(trainers, "echo")["pid"]
    with pytest.raises(TrainingLost, match="wrote no answer"):
        ask(trainers, "write", hex=FOREIGN[name].hex())

    assert not is_alive(pid)


def test_17_mib_that_are_written_are_not_read(trainers: Trainers) -> None:
    length = (MAX_BYTES + (1 << 20)).to_bytes(4, "little")
    with pytest.raises(TrainingLost, match="at most 16777216 are read"):
        ask(trainers, "write", hex=(length + b"x" * 1020).hex(), times=17 << 10)


def test_a_second_answer_ends_the_process_and_counts_for_no_job(trainers: Trainers) -> None:
    """The first is the worker's; what comes after it is none, and never the next job's."""
    pid = ask(trainers, "echo")["pid"]
    # A thread of a task's own could write at any time: here, before the true answer and idle message.
    with pytest.raises(TrainingLost):
        ask(trainers, "write", hex=message("answer", "job-1/0123456789abcdef", {}).hex())
    ask(trainers, "twice")
    again = ask(trainers, "echo")

    assert again["before"] == []
    assert again["pid"] != pid


@pytest.mark.parametrize("deed", ["sleep", "loop", "stand"])
def test_a_timeout_ends_a_process_whatever_it_is_at(trainers: Trainers, deed: str) -> None:
    pid = ask(trainers, "echo")["pid"]
    with pytest.raises(JobTimeoutException), UnixSignalDeathPenalty(1, JobTimeoutException):
        ask(trainers, deed)

    assert not is_alive(pid)
    assert ask(trainers, "echo")["pid"] != pid


def test_a_round_that_ends_is_answered_by_the_same_process(trainers: Trainers) -> None:
    answer = trainers.ask(KEY, "job", {"do": "wait"}, lambda body: trainers.stop())

    assert answer["ended"]
    assert ask(trainers, "echo")["before"] == ["wait"]


@pytest.mark.parametrize("deed", ["sleep", "loop", "stand"])
def test_a_process_that_does_not_stop_is_killed(trainers: Trainers, deed: str) -> None:
    started = time.monotonic()
    with pytest.raises(RoundEnded):
        trainers.ask(KEY, "job", {"do": deed}, lambda body: trainers.stop())

    assert time.monotonic() - started < STOP_S + 2
    assert trainers.pids == {}


def test_what_a_job_leaves_behind_ends_with_it(trainers: Trainers) -> None:
    before = children()
    pid = ask(trainers, "leave")["pid"]
    again = ask(trainers, "echo")

    assert again["pid"] == pid
    assert [path for path in Path("/proc").glob(f"{pid}/task/*/children") if path.read_text()] == []
    assert children() - before - {trainers._server.pid} == set()


def test_what_a_killed_process_has_started_ends_with_it(trainers: Trainers) -> None:
    before = children()
    with pytest.raises(TrainingLost):
        ask(trainers, "leave", then="kill", signal=9)

    assert children() - before == {trainers._server.pid}


def test_a_changed_mark_and_an_error_end_the_process_without_a_failure(trainers: Trainers) -> None:
    changed, failed = ask(trainers, "change")["pid"], ask(trainers, "fail")["pid"]

    assert ask(trainers, "echo")["pid"] not in (changed, failed)
    assert changed != failed


def test_a_process_that_was_killed_between_two_jobs_is_replaced(trainers: Trainers) -> None:
    pid = ask(trainers, "echo")["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_for("its end", lambda: not is_alive(pid))

    assert ask(trainers, "echo")["pid"] != pid


def test_the_fork_server_may_end_at_any_time(trainers: Trainers) -> None:
    pid, fork_server = ask(trainers, "echo")["pid"], trainers._server.pid
    os.kill(fork_server, signal.SIGKILL)
    wait_for("its end", lambda: not is_alive(fork_server) and not is_alive(pid))
    again = ask(trainers, "echo")["pid"]
    with pytest.raises(TrainingLost, match="ended with the process that had started it"):
        trainers.ask(
            KEY,
            "job",
            {"do": "sleep"},
            lambda body: os.kill(trainers._server.pid, signal.SIGKILL),
        )

    assert again != pid
    assert ask(trainers, "echo")["before"] == []


def test_a_fork_server_that_cannot_start_fails_the_job() -> None:
    made = Trainers(ForkServerProcess([sys.executable, "-c", "raise SystemExit(7)"], {}), Limits())
    with pytest.raises(TrainingLost, match="could not be started"):
        ask(made, "echo")
    made.close()


def test_a_trainer_sees_nothing_of_its_workers_secrets() -> None:
    secret = "a1b2c3d4e5f6"
    url = f"redis://:{secret}@127.0.0.1:6379"
    environ = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "FLQ_REDIS_URL": url,
        "FLQ_SITE_TOKEN": secret,
    }
    before = {str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()}
    made = Trainers(ForkServerProcess(COMMAND, of_trainers(environ, 1)), Limits())
    try:
        found = ask(made, "see")
    finally:
        made.close()

    assert secret not in json.dumps(found)
    assert found["threads"] == 1
    # Standard output and error are the worker's; one socket is its own.
    own = [what for what in found["descriptors"] if what.startswith(("socket", "anon"))]
    assert len(set(own) - before) == 1


def test_signals_that_stop_a_worker_stop_no_trainer(trainers: Trainers) -> None:
    pid = ask(trainers, "echo")["pid"]
    for number in (signal.SIGTERM, signal.SIGINT):
        for one in (pid, trainers._server.pid):
            os.kill(one, number)

    assert ask(trainers, "echo")["pid"] == pid


def test_what_a_task_starts_is_stopped_by_the_signal_that_stops_no_trainer(
    trainers: Trainers,
) -> None:
    with UnixSignalDeathPenalty(20, JobTimeoutException):
        found = ask(trainers, "stop_own")

    assert found["ended"] == [-signal.SIGTERM, -signal.SIGTERM]
    os.kill(found["pid"], signal.SIGTERM)
    assert ask(trainers, "echo")["pid"] == found["pid"]


def test_a_process_stopped_right_after_its_fork_ends(trainers: Trainers) -> None:
    with UnixSignalDeathPenalty(60, JobTimeoutException):
        found = ask(trainers, "stop_at_once", times=100)

    assert found["ended"] == [-signal.SIGTERM] * 100
    assert found["blocked"] == []


def test_descriptors_are_closed(trainers: Trainers) -> None:
    def opened() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    ask(trainers, "echo")
    before = opened()
    for _ in range(5):
        ask(trainers, "fail")
        with pytest.raises(TrainingLost):
            ask(trainers, "exit")
    ask(trainers, "echo")

    assert opened() == before


WORKER = """
import json, os, sys, time
from tests.unit.client.trainer import test_process as own
made = own.Trainers(own.server(), own.Limits())
pid = own.ask(made, "echo")["pid"]
print(json.dumps([made._server.pid, pid]), flush=True)
def on_progress(body):
    print("{}", flush=True)
made.ask(own.KEY, "job", {"do": sys.argv[1]}, on_progress)
"""


@pytest.mark.parametrize("deed", ["sleep", "loop", "stand"])
def test_everything_below_a_killed_worker_dies(deed: str) -> None:
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, deed], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert worker.stdout is not None
    pids = json.loads(worker.stdout.readline())
    assert worker.stdout.readline() == "{}\n"
    assert all(map(is_alive, pids))
    worker.kill()
    worker.wait()
    worker.stdout.close()

    wait_for("all to end", lambda: not any(map(is_alive, pids)), 5)


# Limits


def with_limits(
    limits: Limits, use: Callable[[Trainers], None], reload: Path | None = None
) -> None:
    made = Trainers(server(), limits, reload)
    try:
        use(made)
    finally:
        made.close()


def test_the_least_recently_used_process_ends_first() -> None:
    def use(trainers: Trainers) -> None:
        runs = [(f"run-{letter * 6}", 0) for letter in "abc"]
        pids = [ask(trainers, "echo", run)["pid"] for run in runs[:2]]
        assert ask(trainers, "echo", runs[0])["pid"] == pids[0]
        ask(trainers, "echo", runs[2])
        assert is_alive(pids[0])
        assert not is_alive(pids[1])
        assert list(trainers.pids) == [runs[0], runs[2]]

    with_limits(Limits(trainers=2), use)


def test_a_process_ends_after_a_number_of_jobs() -> None:
    def use(trainers: Trainers) -> None:
        pids = [ask(trainers, "echo")["pid"] for _ in range(5)]
        assert [pids.index(pid) for pid in pids] == [0, 0, 2, 2, 4]

    with_limits(Limits(jobs=2), use)


def test_a_process_that_keeps_too_much_memory_ends() -> None:
    def use(trainers: Trainers) -> None:
        first = ask(trainers, "eat", mib=1)["pid"]
        assert ask(trainers, "eat", mib=200)["pid"] == first
        assert ask(trainers, "echo")["pid"] != first

    with_limits(Limits(nbytes=150 << 20), use)


def test_processes_that_together_keep_too_much_memory_end() -> None:
    def use(trainers: Trainers) -> None:
        first = ask(trainers, "eat", mib=100)["pid"]
        second = ask(trainers, "eat", ("run-bbbbbb", 0), mib=100)["pid"]
        trainers.tend()
        assert not is_alive(first)
        assert is_alive(second)

    with_limits(Limits(nbytes=180 << 20), use)


def test_a_process_that_grows_far_beyond_its_second_job_ends() -> None:
    def use(trainers: Trainers) -> None:
        pids = [ask(trainers, "eat", mib=mib)["pid"] for mib in (1, 1, 300, 300, 1)]
        assert [pids.index(pid) for pid in pids] == [0, 0, 0, 0, 4]

    with_limits(Limits(), use)


def test_idle_processes_and_those_of_ended_runs_end() -> None:
    def use(trainers: Trainers) -> None:
        first = ask(trainers, "echo")["pid"]
        trainers.tend(lambda run: run == KEY[0])
        assert is_alive(first)
        trainers.tend(lambda run: False)
        assert not is_alive(first)

    with_limits(Limits(), use)

    def soon(trainers: Trainers) -> None:
        first = ask(trainers, "echo")["pid"]
        time.sleep(0.05)
        trainers.tend()
        assert not is_alive(first)

    with_limits(Limits(idle_s=0.01), soon)


def test_a_reload_ends_the_processes_that_are_there_before_their_next_job(tmp_path: Path) -> None:
    def use(trainers: Trainers) -> None:
        first = ask(trainers, "echo")["pid"]
        assert ask(trainers, "echo")["pid"] == first
        (tmp_path / "reload").write_text("once")
        second = ask(trainers, "echo")["pid"]
        assert second != first
        assert ask(trainers, "echo")["pid"] == second

    with_limits(Limits(), use, tmp_path / "reload")
