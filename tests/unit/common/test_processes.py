"""Whether a process is dead for certain."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from fl_queue.common import processes


def test_a_living_process_is_not_dead() -> None:
    assert not processes.is_dead(processes.process_identity())
    assert not processes.is_dead(processes.process_identity(os.getppid()))


def test_an_ended_process_is_dead_and_so_is_a_zombie() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    identity = processes.process_identity(child.pid)
    assert not processes.is_dead(identity)
    child.kill()
    while not processes.is_dead(identity):  # A zombie now: its parent has not waited for it.
        time.sleep(0.01)
    child.wait()

    assert processes.is_dead(identity)


def test_another_process_under_the_same_pid_is_another() -> None:
    machine, started = processes.process_identity().rsplit(":", 1)

    assert processes.is_dead(f"{machine}:{int(started) - 1}")


@pytest.mark.parametrize("change", ["boot", "namespace"])
def test_of_another_machine_or_container_nothing_is_known(change: str) -> None:
    boot, namespace, *rest = processes.process_identity().split(":")
    rest[-1] = "1"
    other = ["x", namespace] if change == "boot" else [boot, "1"]

    assert not processes.is_dead(":".join([*other, *rest]))


@pytest.mark.parametrize("text", ["", "x", "a:b:pid:", "a:b:pid:../1:2", ":pid::", "\x00"])
def test_nonsense_is_not_dead(text: str) -> None:
    assert not processes.is_dead(text)
