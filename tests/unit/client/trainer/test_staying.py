"""A training process that stays and fresh ones give the same bits, with more than one thread, too."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from fl_queue.client.asking import Ask, Report
from fl_queue.client.trainer import environment
from fl_queue.client.trainer.process import ForkServerProcess
from fl_queue.client.trainer.trainers import Limits, Trainers
from fl_queue.common.own_modules import python_command
from fl_queue.config.run_config import RunConfig
from fl_queue.protocol.records import TRAINER_JOB
from fl_queue.protocol.trainer_messages import Answer, Progress, Request
from tests.support.checkout import ROOT
from tests.support.kept_rounds import CSV, digest_of
from tests.support.site_rounds import SiteRounds, settings_of

THREADS = 2
CONFIGS: list[dict[str, Any]] = [
    CSV | {"task": {"hidden": [64]}, "train": {"epochs": 1, "momentum": 0.9}},
    {
        "run": {"task": "mnist-2nn"},
        "data": {"train_per_class": [40, 40], "validation_per_class": [20, 20]},
        "train": {"epochs": 1},
    },
]


def ask_of(trainers: Trainers) -> Ask:
    """As a worker asks them."""

    def ask(request: Request, report: Report) -> Answer:
        key, body = (request.run, request.segment), request.to_dict()
        found = trainers.ask(key, "job", body, lambda values: report(Progress.from_dict(values)))
        return Answer.from_dict(found)

    return ask


def test_a_process_that_stays_has_the_bits_of_fresh_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = "".join(f"{20 + i},{60 + i % 7}.5,{i % 2}\n" for i in range(400))
    (tmp_path / "train.csv").write_text("age,weight,label\n" + rows)
    site = settings_of(tmp_path / "state", data_dir=str(tmp_path), threads=THREADS)
    site.outbox.mkdir(parents=True)
    for name, value in site.to_environ().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    # On a busy machine threads that spin take each other's time.
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    command = python_command("-m", "workers.trainer")
    server = ForkServerProcess(command, environment.of_trainers(os.environ, THREADS))
    both = Trainers(server, Limits(jobs=1)), Trainers(server, Limits())
    try:
        for number, raw in enumerate(CONFIGS):
            runs = [
                SiteRounds(site, RunConfig.from_dict(raw), ask_of(each), f"run-{number:012x}")
                for each in both
            ]
            fresh, staying = (digest_of(each, last=2) for each in runs)
            assert fresh == staying
            assert fresh[1].header.environment["threads"] == THREADS
            jobs = [each.train(3).header.environment[TRAINER_JOB] for each in runs]
            # Facts, version 0, two rounds, an evaluation.
            assert jobs == [1, 6]
    finally:
        for each in both:
            each.close()
