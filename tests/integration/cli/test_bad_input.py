"""What bad input gets: one line that names the field and the fix, and its exit code."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from rich.console import Console

from fl_queue.cli import cli
from fl_queue.config import loading
from fl_queue.coordinator.rounds import lifecycle, runs
from fl_queue.errors import UnknownRun
from fl_queue.protocol.records import Receipt
from fl_queue.reporting import doctor, progress
from fl_queue.store import Store, keyspace
from tests.support import commands
from tests.support.commands import CommandResult


def fl_queue(*arguments: str, state_dir: Path) -> CommandResult:
    """A command of a user whose environment names a state folder alone."""
    return commands.fl_queue(
        *arguments,
        environment={
            "PATH": "/usr/bin:/bin",
            "HOME": str(state_dir),
            "FLQ_STATE_DIR": str(state_dir),
        },
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
        (["statuss"], 2, ["No such command 'statuss'; did you mean status?"]),
        (["worker", "agregator"], 2, ["No such command 'agregator'; did you mean aggregator?"]),
        (["config", "shw"], 2, ["No such command 'shw'; did you mean show?"]),
        (["config", "show", "mnist-2n"], 2, ["did you mean mnist-2nn?"]),
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
    context = click.Context(cli)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        assert command.help, name


def test_no_command_imports_torch() -> None:
    code = """
import click, sys
from fl_queue.cli import COMMANDS, cli
for name in COMMANDS:
    assert cli.get_command(click.Context(cli), name)
print("torch" in sys.modules, "numpy" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    # All modules were loaded, and none has torch.
    assert done.stdout.split() == ["False", "True"]


def test_unknown_run_names_those_there_are(private_redis, tmp_path: Path) -> None:
    done = fl_queue(
        "history", "absent", "--state-dir", str(private_redis.state_dir), state_dir=tmp_path
    )

    assert done.returncode == 2
    assert "run absent: there is no such run" in done.stderr


def test_a_mistyped_name_of_a_run_names_the_nearest(store: Store) -> None:
    loaded = loading.load("demo", (), {})
    for name in ("demo", "trial"):
        runs.start_run(store, name, loaded, 1)

    with pytest.raises(UnknownRun, match=r"^run dmeo: there is no such run; did you mean demo\?"):
        runs.find_run(store, "dmeo")
    with pytest.raises(UnknownRun, match=r"^run x: there is no such run \(runs: demo, trial\)$"):
        runs.find_run(store, "x")


def test_doctor_finds_the_private_servers_fit(private_redis, tmp_path: Path) -> None:
    done = fl_queue("doctor", "--state-dir", str(private_redis.state_dir), state_dir=tmp_path)

    assert done.returncode == 0
    assert "appendonly yes, appendfsync always" in done.stdout
    assert "no aggregator worker is alive" in done.stdout


def test_set_wins_over_the_environment_and_the_option_over_both(
    tmp_path: Path, monkeypatch
) -> None:
    def refused(*arguments: str) -> str:
        done = CliRunner().invoke(cli, ["start-round", "demo", "--no-wait", *arguments])
        return str(done.exception)

    monkeypatch.setenv("FLQ_REDIS_URL", "redis://127.0.0.1:1/0")

    assert "127.0.0.1:1/" in refused()
    assert "127.0.0.1:2/" in refused("--set", "redis.url=redis://127.0.0.1:2/0")
    assert "127.0.0.1:3/" in refused(
        "--set", "redis.url=redis://127.0.0.1:2/0", "--redis-url", "redis://127.0.0.1:3/0"
    )


def test_redis_ends_with_an_error_when_one_of_its_servers_dies(tmp_path: Path) -> None:
    state_dir = tmp_path / "state"
    process = subprocess.Popen(
        [sys.executable, "-m", "fl_queue", "redis", "--state-dir", str(state_dir)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert "control" in process.stdout.readline()
    os.kill(json.loads((state_dir / "redis.json").read_text())["pids"]["data"], signal.SIGKILL)

    _, errors = process.communicate(timeout=30)

    assert process.returncode == 5
    assert "the private data server ended" in errors


def test_doctor_names_clients_whose_jobs_no_worker_takes(redis_urls: tuple[str, str]) -> None:
    store = Store(*redis_urls)
    store.control.redis.zadd(keyspace.CLIENTS, {"gone": store.control.now()})
    store.control.redis.rpush(f"rq:queue:{keyspace.client_queue('gone')}", "a-job")

    found = doctor.examine(*redis_urls, Path("/absent"), None)

    assert any("jobs wait" in one.what and "gone" in one.what for one in found)
    store.close()


def test_updates_are_counted_from_the_events_not_from_later_receipts(
    redis_urls: tuple[str, str],
) -> None:
    store = Store(*redis_urls)
    state = runs.start_run(store, "r", loading.load("demo", ("round.cohort=2",), {}), 1)
    now = store.control.now()
    for client in ("a", "b"):
        store.control.redis.zadd(keyspace.CLIENTS, {client: now})
    store.control.redis.hset(
        keyspace.run(state.run_id), mapping={"version": "0", "digest": "d" * 64}
    )
    lifecycle.advance(store, state.run_id)
    for client in ("a", "b"):
        store.control.receipts.add(state.run_id, 0, client, Receipt("received"), 0)
    store.control.redis.hset(keyspace.run(state.run_id), "state", "completed")
    console = Console(file=io.StringIO(), width=200)

    progress.follow(store, state.run_id, console, since="0-0")

    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "update of a is in (1 of 2" in text
    assert "update of b is in (2 of 2" in text
    store.close()
