"""A job after an edit of the task's file is done by a fresh training process, with the new code."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from blake3 import blake3

from fl_queue.config.run_config import RunConfig
from tests.support.checkout import ROOT
from tests.support.site_rounds import SiteRounds, settings_of
from workers import site_worker

CODE = "from fl_queue.tasks.mnist import ThreesAndSevens\nclass Edited(ThreesAndSevens): pass\n"


def test_an_edited_task_is_trained_by_a_fresh_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "edited_task.py"
    file.write_text(CODE)
    site = settings_of(tmp_path / "state", allow=("edited_task:Edited",), trainer_jobs=0)
    site.outbox.mkdir(parents=True, exist_ok=True)
    for name, value in site.to_environ().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    monkeypatch.setattr(site_worker, "_trainers", [])
    config = RunConfig.from_dict({"run": {"task": "edited_task:Edited"}, "train": {"epochs": 1}})
    rounds = SiteRounds(site, config, site_worker.ask)
    try:
        rounds.initialise()
        seen = [rounds.train(1)]
        pids = [*site_worker.trainers().pids.values()]
        file.write_text(CODE + "# edited\n")
        seen.append(rounds.train(2))
        pids += site_worker.trainers().pids.values()
    finally:
        site_worker.trainers().close()

    codes = [one.header.environment["task_code"] for one in seen]
    assert codes[1] == blake3(file.read_bytes()).hexdigest() != codes[0]
    assert len(set(pids)) == 2
