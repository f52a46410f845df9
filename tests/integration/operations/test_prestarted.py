"""Forked workers of tests are processes as those that are started; see ``tests.support.prestarted``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import prestarted
from tests.support.federation import command_of, wait_for


def _started(how: str, words: list[str], log: Path, environment: dict[str, str]) -> int:
    command = [sys.executable, "-m", "fl_queue", *words]
    with log.open("wb") as file:
        if how == "forked":
            return prestarted.SESSION.popen(command, file, environment).wait(60)
        return subprocess.run(
            command, stdout=file, stderr=file, env=environment, check=False
        ).returncode


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["config", "show", "demo"], 0),
        (["worker", "client", "--client", "a b"], 2),
        (["nothing"], 2),
    ],
)
def test_output_and_status_are_those_of_a_started_one(
    words: list[str], status: int, tmp_path: Path, no_process_left: None
) -> None:
    environment = {**os.environ, "FLQ_STATE_DIR": str(tmp_path)}
    logs = {how: tmp_path / how for how in ("started", "forked")}
    assert {_started(how, words, log, environment) for how, log in logs.items()} == {status}
    assert logs["forked"].read_text() == logs["started"].read_text() != ""


def test_a_forked_one_is_a_child_with_its_own_command_line(
    tmp_path: Path, no_process_left: None
) -> None:
    command = [sys.executable, "-m", "fl_queue", "redis", "--state-dir", str(tmp_path)]
    with (tmp_path / "log").open("wb") as log:
        made = prestarted.SESSION.popen(command, log, os.environ)
    try:
        wait_for("its servers", lambda: (tmp_path / "log").read_text())
        assert os.fsencode(tmp_path) in command_of(made.pid)
    finally:
        made.terminate()
    assert made.wait(60) == 130


def test_another_one_forks_when_it_was_killed(tmp_path: Path, no_process_left: None) -> None:
    session = prestarted.Prestarted()
    command = [sys.executable, "-m", "fl_queue", "--version"]
    try:
        for _ in range(2):
            with (tmp_path / "log").open("wb") as log:
                assert session.popen(command, log, os.environ).wait(60) == 0
            assert session._process is not None
            session._process.kill()
    finally:
        session.close()
