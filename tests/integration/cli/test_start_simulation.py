"""``start-round`` of a simulation with nothing running: what it starts, and what a kill leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fl_queue.store import Store
from fl_queue.store.embedded import server_pair
from tests.support.federation import wait_for

CONFIG = """
[run]
task = "mnist-3v7"
rounds = 2
evaluate_every = 0
[clients]
kind = "simulation"
count = 6
processes = 2
[round]
cohort = 4
"""


def start_round(folder: Path, *options: str) -> list[str]:
    config = folder / "many.toml"
    config.write_text(CONFIG)
    state = ["--state-dir", str(folder / "state")]
    return [sys.executable, "-m", "fl_queue", "start-round", str(config), *options, *state]


def digests(folder: Path) -> list[str]:
    with (
        server_pair.start(folder / "state") as redis,
        Store.open(redis.url, redis.blob_url, folder) as store,
    ):
        run = store.control.runs.names()["many"]
        return [entry["digest"] for entry in store.control.versions.all(run).values()]


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Digests of an undisturbed simulation."""
    folder = tmp_path_factory.mktemp("calm")
    done = subprocess.run(start_round(folder), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "run completed at version 2" in done.stderr
    assert server_pair.running(folder / "state") is None
    return digests(folder)


def test_a_simulation_needs_nothing_running_and_leaves_nothing_running(calm: list[str]) -> None:
    assert len(set(calm)) == 3  # Versions 0 to 2.


@pytest.mark.timeout(450)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_same_command_goes_on_with_a_run_that_was_cut_off(
    calm: list[str], tmp_path: Path, how: signal.Signals
) -> None:
    with subprocess.Popen(start_round(tmp_path), stderr=subprocess.PIPE, text=True) as first:
        assert first.stderr is not None
        watch = threading.Timer(100, first.kill)
        watch.start()
        for line in first.stderr:
            if line.startswith("round 1 opened"):
                os.kill(first.pid, how)
                break
        rest = first.stderr.read()
        watch.cancel()
    assert (how == signal.SIGKILL) or "the same command continues it" in rest
    wait_for("the end of its servers", lambda: server_pair.running(tmp_path / "state") is None)
    again = subprocess.run(start_round(tmp_path), capture_output=True, text=True, timeout=300)

    assert again.returncode == 0, again.stderr
    assert "Run many is training: going on with it." in again.stderr
    assert digests(tmp_path) == calm


def test_servers_of_its_own_would_not_outlive_no_wait(tmp_path: Path) -> None:
    done = subprocess.run(start_round(tmp_path, "--no-wait"), capture_output=True, text=True)

    assert done.returncode == 2
    assert "--no-wait" in done.stderr
    assert not (tmp_path / "state").exists()


def test_on_servers_that_run_already_it_starts_the_roles_that_are_missing(
    calm: list[str], tmp_path: Path
) -> None:
    with server_pair.start(tmp_path / "state") as redis:
        done = subprocess.run(start_round(tmp_path), capture_output=True, text=True, timeout=120)
        with Store.open(redis.url, redis.blob_url, tmp_path) as store:
            left = store.control.workers.living()
        logs = sorted(path.name for path in (tmp_path / "state" / "logs").iterdir())

    assert done.returncode == 0, done.stderr
    assert left == []
    assert logs == ["aggregator.log", "pool.log"]
    assert digests(tmp_path) == calm
