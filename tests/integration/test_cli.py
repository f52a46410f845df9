"""What bad input gets: one line that names the field and the fix, and its exit code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fl_queue.cli import cli


def fl_queue(*arguments: str, state_dir: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fl_queue", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": "/usr/bin:/bin", "HOME": str(state_dir), "FLQ_STATE_DIR": str(state_dir)},
    )


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (
            ["start-round", "demo", "--set", "train.epoch=3"],
            2,
            ["train.epoch", "did you mean train.epochs"],
        ),
        (
            ["start-round", "demo", "--set", "train.epochs=many"],
            2,
            ["train.epochs", "whole number"],
        ),
        (["start-round", "demo", "--set", "round.quorum=9"], 2, ["round.quorum", "round.cohort"]),
        (["start-round", "demo", "--set", "run.task=mnist-2n"], 2, ["run.task", "mnist-2nn"]),
        (["start-round", "absent.toml"], 2, ["absent.toml"]),
        (
            ["start-round", "demo", "--redis-url", "redis://u:secret@127.0.0.1:1/0"],
            5,
            ["redis://u:***@127.0.0.1:1/0"],
        ),
        (["status"], 5, ["fl-queue redis"]),
        (["worker", "client", "--client", "not_a_name"], 2, ["--client", "letters"]),
        (["worker", "client", "--client", "aggregator"], 2, ["--client"]),
        (["worker", "client", "--client", "a", "--data", "/absent"], 3, ["/absent", "folder"]),
        (["worker", "client", "--client", "a", "--device", "gpu"], 2, ["--device", "cuda"]),
        (["nonsense"], 2, ["nonsense"]),
    ],
)
def test_bad_input_gets_one_line_and_its_exit_code(
    tmp_path: Path, arguments: list[str], status: int, words: list[str]
) -> None:
    done = fl_queue(*arguments, state_dir=tmp_path)

    assert done.returncode == status
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr
    assert "secret" not in done.stderr


def test_every_command_has_help() -> None:
    for name, command in cli.commands.items():
        assert command.help, name


def test_help_does_not_import_torch(tmp_path: Path) -> None:
    code = "import sys, fl_queue.cli; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert done.stdout.strip() == "False"


def test_unknown_run_names_those_there_are(private_redis, tmp_path: Path) -> None:
    done = fl_queue(
        "history", "nobody", "--state-dir", str(private_redis.state_dir), state_dir=tmp_path
    )

    assert done.returncode == 2
    assert "run nobody: there is no such run" in done.stderr


def test_doctor_finds_the_private_servers_fit(private_redis, tmp_path: Path) -> None:
    done = fl_queue("doctor", "--state-dir", str(private_redis.state_dir), state_dir=tmp_path)

    assert done.returncode == 0
    assert "appendonly yes, appendfsync always" in done.stdout
    assert "no aggregator worker is alive" in done.stdout
