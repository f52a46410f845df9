"""A fork server that hangs, ends or is slow; and what a worker remembers of it and of its trainers."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from rq.timeouts import JobTimeoutException

from fl_queue.client.trainer import trainers as trainers_module
from fl_queue.client.trainer.process import ForkServerProcess
from fl_queue.client.trainer.trainers import Limits, Trainers
from fl_queue.errors import TrainingLost
from tests.support.checkout import ROOT
from tests.support.federation import wait_for
from tests.unit.client.trainer.test_process import ask, is_alive, server
from workers import site_worker


@pytest.fixture
def trainers() -> Iterator[Trainers]:
    made = Trainers(server(), Limits())
    try:
        yield made
    finally:
        made.close()


@contextmanager
def attempt_of(seconds: float) -> Iterator[None]:
    """As RQ ends a job."""

    def on_alarm(signum: int, frame: Any) -> None:
        raise JobTimeoutException

    before = signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_fork_server_that_hangs_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    process = server(fork_s=600.0)
    made, start = Trainers(process, Limits()), process.start

    def start_patiently() -> None:
        start()
        # The one that follows has to start, which may take longer.
        process._fork_s = 0.2 if process.pid == hung else 600.0

    try:
        ask(made, "echo")
        hung = process.pid
        os.kill(hung, signal.SIGSTOP)
        monkeypatch.setattr(process, "start", start_patiently)
        with attempt_of(60):
            found = ask(made, "echo", ("run-bbbbbb", 0))
    finally:
        made.close()

    assert found["before"] == []
    assert not is_alive(hung)


def test_attempts_that_are_too_short_end_no_fork_server_that_is_just_slow() -> None:
    made = Trainers(server(fork_s=600.0), Limits())
    try:
        ask(made, "echo")
        slow = made._server.pid
        os.kill(slow, signal.SIGSTOP)
        with pytest.raises(JobTimeoutException), attempt_of(0.1):
            ask(made, "echo", ("run-bbbbbb", 0))
        os.kill(slow, signal.SIGCONT)
        ask(made, "echo", ("run-bbbbbb", 0))
        assert made._server.pid == slow
    finally:
        made.close()


def test_attempts_that_are_too_short_count_together() -> None:
    made = Trainers(server(fork_s=600.0), Limits())
    try:
        ask(made, "echo")
        hung = made._server.pid
        os.kill(hung, signal.SIGSTOP)
        while made._server._silent_since is None:
            with pytest.raises(JobTimeoutException), attempt_of(0.1):
                ask(made, "echo", ("run-cccccc", 0))
        # As if the first attempt had been long ago; the next fork server has all of the time for itself.
        made._server._silent_since -= 600
        ask(made, "echo", ("run-cccccc", 0))
        assert made._server.pid != hung
    finally:
        made.close()


def test_a_fork_server_that_never_gets_ready_fails_the_job() -> None:
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    made = Trainers(ForkServerProcess(command, {}, fork_s=0.2), Limits())
    with attempt_of(10), pytest.raises(TrainingLost, match="could not be started"):
        ask(made, "echo")
    made.close()


def test_a_worker_does_not_wait_for_a_fork_server_that_is_to_import(trainers: Trainers) -> None:
    ask(trainers, "echo")
    os.kill(trainers._server.pid, signal.SIGSTOP)
    with attempt_of(10):
        for _ in range(2000):
            trainers._server.preload("json")


def wait_for_end(*pids: int) -> None:
    wait_for("their end", lambda: not any(map(is_alive, pids)))


def test_each_fork_server_is_asked_once_to_import_the_compiler(
    trainers: Trainers, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(trainers_module, "_PRELOAD_S", 0.0)
    monkeypatch.setattr(
        trainers._server, "preload", lambda module: asked.append(trainers._server.pid)
    )
    expected = []
    for _ in range(2):
        pid = ask(trainers, "compile")["pid"]
        for _ in range(4):
            trainers.tend()
        expected.append(fork_server := trainers._server.pid)
        os.kill(fork_server, signal.SIGKILL)
        wait_for_end(fork_server, pid)

    assert asked == expected


def test_a_trainer_is_at_work_until_what_it_has_left_is_ended(
    trainers: Trainers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second signal meanwhile must not raise in the middle of it."""
    seen: list[bool] = []
    end = trainers._offspring.end

    def watched(spare: Iterable[int] = ()) -> int:
        seen.append(trainers.is_asking)
        trainers.stop()
        return end(spare)

    monkeypatch.setattr(trainers._offspring, "end", watched)
    with pytest.raises(TrainingLost):
        ask(trainers, "exit")

    assert seen == [True]
    assert not trainers.is_asking


def test_exit_statuses_are_kept_of_trainers_that_are_kept(trainers: Trainers) -> None:
    for deed in ("fail", "change", "echo"):
        ask(trainers, deed)
        with pytest.raises(TrainingLost):
            ask(trainers, "exit")
    ask(trainers, "echo", ("run-bbbbbb", 0))

    assert set(trainers._server._statuses) == set(trainers.pids.values())


def test_a_trainer_collects_garbage_and_leaves_what_its_fork_server_has_imported(
    trainers: Trainers,
) -> None:
    found = ask(trainers, "collects")

    assert found["enabled"]
    assert found["is_frozen"]


#: All its trainers have one pid; of each it reports the end of the one before.
REUSING = """
import os, socket, sys
from fl_queue.client.trainer.protocol import receive_packet, send_packet
control = socket.socket(fileno=int(sys.argv[2]))
pid = os.getpid()
while packet := receive_packet(control):
    number = packet.values["fork"]
    send_packet(control, {"ended": pid, "status": 256 * (number - 1)})
    send_packet(control, {"forked": number, "pid": pid}, [os.pidfd_open(pid)])
    if number == 2:
        send_packet(control, {"ended": pid, "status": 512})
"""


def test_a_process_has_not_the_exit_status_of_an_earlier_one_with_its_pid() -> None:
    made = ForkServerProcess([sys.executable, "-c", REUSING], {"PYTHONPATH": str(ROOT)})
    try:
        for _ in range(2):
            pid, pidfd, connection = made.fork()
            os.close(pidfd)
            connection.close()
        assert made.status_of(pid) == 512
    finally:
        made.end()


#: A fork server out of the files of another version.
UPGRADED = """
import runpy
import fl_queue._version
fl_queue._version.__version__ = "999.0"
runpy.run_module("tests.support.small_trainer", run_name="__main__")
"""


def test_a_worker_whose_files_were_upgraded_ends_after_its_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    made = Trainers(ForkServerProcess([sys.executable, "-c", UPGRADED], environ), Limits())
    monkeypatch.setattr(site_worker, "_trainers", [made])
    # The suite's own process has imported torch, and is larger than any worker.
    monkeypatch.setattr(site_worker, "MAX_WORKER_BYTES", 1 << 40)
    worker: Any = SimpleNamespace(_stop_requested=False)
    site_worker.SiteWorker.after_job(worker)
    assert not worker._stop_requested

    with pytest.raises(TrainingLost, match="upgraded under its worker"):
        ask(made, "echo")
    site_worker.SiteWorker.after_job(worker)
    made.close()

    assert worker._stop_requested
