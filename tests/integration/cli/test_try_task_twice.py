"""``fl-queue try-task --twice``: whether a process that stays makes the updates of fresh ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fl_queue.common.processes import is_dead
from fl_queue.experiments import twice
from fl_queue.protocol.header import Header
from fl_queue.protocol.manifest import Manifest, TensorSpec
from tests.support.federation import wait_for

TASK = """
from fl_queue.tasks.mnist import ThreesAndSevens

class Own(ThreesAndSevens):
    keep = {keep}
    leaks = {leaks}
    rounds = 0

    def train(self, model, data, context, on_epoch):
        if self.leaks:
            self.rounds += 1
        model.bias.data += self.rounds
        return super().train(model, data, context, on_epoch)
"""
CONFIG = """
[run]
task = "kept:Own"
[train]
epochs = 1
"""
SAME = "two rounds in fresh processes and in one that stays: the same bits"


@pytest.mark.parametrize(
    ("keep", "leaks", "code", "words"),
    [
        (True, False, 0, [SAME]),
        (
            True,
            True,
            3,
            [
                "round 1: task attribute 'rounds' changed in training",
                "round 2: the update differs in bias",
                "round 2: train_metrics loss_sum differs",
            ],
        ),
        (False, True, 0, ["the task's keep is False: each round has a fresh process"]),
    ],
)
def test_what_a_task_keeps_on_itself_is_named(
    tmp_path: Path, keep: bool, leaks: bool, code: int, words: list[str]
) -> None:
    (tmp_path / "kept.py").write_text(TASK.format(keep=keep, leaks=leaks))
    (tmp_path / "kept.toml").write_text(CONFIG)
    command = [sys.executable, "-m", "fl_queue", "try-task", "kept.toml", "--twice"]

    done = subprocess.run(command, capture_output=True, text=True, timeout=180, cwd=tmp_path)

    assert done.returncode == code, done.stderr
    text = " ".join(done.stderr.split())
    for word in words:
        assert word in text
    assert (SAME in text) is (SAME in words)
    assert "round 1: the update differs" not in text


ENDLESS = """
import multiprocessing
import os
import time
from pathlib import Path
from fl_queue.common.processes import process_identity
from fl_queue.tasks.mnist import ThreesAndSevens

class Own(ThreesAndSevens):
    def train(self, model, data, context, on_epoch):
        if multiprocessing.parent_process() is None:
            return super().train(model, data, context, on_epoch)
        pids = (os.getpid(), os.getppid())
        Path("pids.part").write_text("\\n".join(process_identity(pid) for pid in pids))
        Path("pids.part").rename("pids")
        time.sleep(600)
"""


def test_its_processes_end_with_a_command_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "kept.py").write_text(ENDLESS)
    (tmp_path / "kept.toml").write_text(CONFIG)
    command = [sys.executable, "-m", "fl_queue", "try-task", "kept.toml", "--twice"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=tmp_path) as trial:
        try:
            wait_for("a training in another process", (tmp_path / "pids").exists)
        finally:
            trial.kill()
    trainer, fork_server = (tmp_path / "pids").read_text().splitlines()

    try:
        wait_for("the training process to end", lambda: is_dead(trainer), 10)
        wait_for("the fork server to end", lambda: is_dead(fork_server), 10)
    finally:
        for process in (trainer, fork_server):
            if not is_dead(process):
                os.kill(int(process.split(":pid:")[1].split(":")[0]), signal.SIGKILL)


SENT = Manifest(tuple(TensorSpec(name, (2,), "parameter") for name in "abcde"))
HEADER = Header(
    kind="update",
    run="run",
    round=1,
    client="a",
    token="0" * 16,
    num_examples=7,
    metrics={"x": 1.5},
)


def test_tensors_metrics_and_examples_that_differ_are_named() -> None:
    body = np.zeros(10, "<f4")
    other = body + 1
    nan = replace(HEADER, metrics={"x": float("nan")})
    changed = replace(HEADER, num_examples=8, metrics={"x": 1.0, "y": 2.0})

    assert [*twice.compare(SENT, (nan, body.tobytes()), (nan, body.tobytes()))] == []
    assert [*twice.compare(SENT, (HEADER, body.tobytes()), (changed, other.tobytes()))] == [
        "the update differs in a, b, c and 2 more",
        "metrics x differs: 1.5 fresh, 1.0 in the process that stays",
        "metrics y differs: None fresh, 2.0 in the process that stays",
        "7 examples fresh, 8 in the process that stays",
    ]
