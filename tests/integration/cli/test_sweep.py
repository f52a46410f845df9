"""A sweep of a simulation with nothing running: cut off, gone on with, and one of its runs fails."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fl_queue.coordinator.operations import controls
from fl_queue.coordinator.rounds import lifecycle, runs
from fl_queue.experiments import sweeps
from fl_queue.store import Store
from fl_queue.store.embedded import server_pair

TASK = """
from fl_queue.errors import DataError
from fl_queue.tasks.mnist import ThreesAndSevens

class Mine(ThreesAndSevens):
    def client_data(self, context):
        if context.seed == 1:
            raise DataError("mine", "has no second seed")
        return super().client_data(context)
"""
CONFIG = """
[run]
task = "mine:Mine"
rounds = 1
evaluate_every = 0
[clients]
kind = "simulation"
count = 2
processes = 1
[round]
max_abandoned = 1
[train]
epochs = 2
"""


def test_it_goes_on_where_it_was_cut_off_and_a_run_that_fails_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(TASK)
    (tmp_path / "many.toml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    begin_some(tmp_path / "state")
    command = [sys.executable, "-m", "fl_queue", "sweep", "many.toml", "--seeds", "3", "--json"]

    done = subprocess.run(
        [*command, "--state-dir", "state"], capture_output=True, text=True, timeout=120
    )

    assert done.returncode == 4, done.stderr
    assert "1 of 3: many-s0 is training, goes on (run.seed=0)" in done.stderr
    assert "2 of 3: many-s1 begins (run.seed=1)" in done.stderr
    assert "3 of 3: many-s2 was cancelled, goes on from version 0 (run.seed=2)" in done.stderr
    error = json.loads(done.stderr.splitlines()[-1])["error"]
    assert (error["code"], error["type"]) == (4, "RunFailed")
    assert error["message"].startswith(
        "run many-s1: failed; 2 of 3 runs of the sweep are completed"
    )
    found = json.loads(done.stdout)
    assert found["failed"] == ["many-s1"]
    assert [run["state"] for run in found["runs"]] == ["completed", "failed", "completed"]
    assert found["sweeps"][0]["runs"] == ["many-s0", "many-s2"]
    assert server_pair.running(tmp_path / "state") is None


def begin_some(state: Path) -> None:
    """What a sweep leaves that is killed in its first run, and a run that was cancelled."""
    first, _, last = sweeps.members("many.toml", "many", 3, ())
    with (
        server_pair.start(state) as redis,
        Store.open(redis.url, redis.blob_url, state) as store,
    ):
        for member in (first, last):
            lifecycle.advance(store, runs.start_run(store, member.name, member.config, 1).run_id)
        controls.cancel(store, last.name)
