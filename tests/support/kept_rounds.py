"""
A client's rounds in fresh processes and in one that stays, with a task that draws from all generators and may leak.

A test file that uses it imports the fixture ``own_module``, too.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fl_queue.client.asking import Ask, Report
from fl_queue.client.resident import Resident
from fl_queue.client.site import WorkerSettings
from fl_queue.config.run_config import RunConfig
from fl_queue.protocol.trainer_messages import Answer, Request
from tests.support.site_rounds import SiteRounds, settings_of

OWN = '''
import os, random, threading
import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset
from fl_queue.tasks import ClientData, Task

CALLS = []

def model():
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 2))

def drawn():
    return torch.randn(60, 3), torch.from_numpy(np.random.randint(0, 2, 60))

def made():
    return model(), TensorDataset(*drawn())

def declaring():
    net, rows = made()
    return {"model": net, "train": rows, "metrics": ["classification"]}

class Own(Task):
    """Draws from all three generators, in its data and in its training; leaks in one way or none."""

    def __init__(self, config):
        super().__init__(config)
        self.rng = np.random.default_rng(1)

    def build_model(self):
        return model()

    def client_data(self, context):
        CALLS.append(1) if self.options.get("counts") else None
        x, y = drawn()
        train, validation = self.split(y.numpy(), context)
        x = x * (context.round if self.options.get("reads_round") else 1)
        return ClientData(TensorDataset(x[train], y[train]), TensorDataset(x[validation], y[validation]))

    def train(self, model, data, context, on_epoch):
        leak = self.options.get("leak", "")
        if leak == "fails" and context.round == 2:
            raise ValueError("as asked")
        if leak == "attribute": self.seen = getattr(self, "seen", 0) + 1
        if leak == "global": CALLS.append(context.round)
        if leak == "torch": data.train.tensors[0].add_(1)
        if leak == "numpy": data.train.tensors[0].numpy()[:] += 1
        if leak == "generator": torch.manual_seed(int(self.rng.integers(1000)))
        if leak == "cwd": os.chdir("/")
        if leak == "environ": os.environ["LEAK"] = "1"
        if leak == "dtype": torch.set_default_dtype(torch.float64)
        if leak == "thread": threading.Thread(target=threading.Event().wait, daemon=True, name="leak").start()
        model.train()
        for _ in range(3):
            rows = torch.randint(0, len(data.train), (8,))
            x, y = data.train.tensors[0][rows].float(), data.train.tensors[1][rows]
            loss = nn.functional.cross_entropy(model(x + float(np.random.rand()) + random.random()), y)
            model.zero_grad()
            loss.backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= 0.1 * parameter.grad
        return {"num_examples": len(data.train)}
'''
TABLE = "age,weight,label\n" + "".join(f"{20 + i},{60 + i % 7}.5,{i % 2}\n" for i in range(40))
CSV: dict[str, Any] = {"run": {"task": "csv"}, "data": {"partition": "site"}}


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module ``kept_own`` of this test, on one thread: processes are forked here."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    code = tmp_path / "code"
    code.mkdir()
    (code / "kept_own.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(code))
    sys.modules.pop("kept_own", None)
    yield
    sys.modules.pop("kept_own", None)
    torch.set_num_threads(threads)


def fresh(site: WorkerSettings) -> Ask:
    """Each request in a process of its own."""

    def ask(request: Request, report: Report) -> Answer:
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            try:
                answer = Resident(site).handle(request, lambda progress: None)
                os.write(writing, json.dumps(answer.to_dict()).encode())
            except Exception:  # noqa: BLE001
                traceback.print_exc()
            finally:
                os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            text = pipe.read()
        os.waitpid(child, 0)
        return Answer.from_dict(json.loads(text))

    return ask


def resident(site: WorkerSettings) -> tuple[Ask, list[list[str]]]:
    """All requests in this process, tidied after each; and what the marks found."""
    one, found = Resident(site), []

    def ask(request: Request, report: Report) -> Answer:
        answer = one.handle(request, report)
        found.append(one.tidy())
        return answer

    return ask, found


def site_of(folder: Path, name: str) -> WorkerSettings:
    data = folder / "data"
    data.mkdir(exist_ok=True)
    if not (data / "train.csv").exists():
        (data / "train.csv").write_text(TABLE)
        (data / "test.csv").write_text(TABLE)
    return settings_of(
        folder / name, data_dir=str(data), allow=("kept_own:*", "csv", "mnist", "image-folder")
    )


def config_of(raw: dict[str, Any]) -> RunConfig:
    small = {"epochs": 2, "batch_size": 8} | raw.get("train", {})
    return RunConfig.from_dict(raw | {"train": small})


def digest_of(rounds: SiteRounds, other: SiteRounds | None = None) -> list[Any]:
    """Everything that four rounds send and keep, with facts, evaluations and another run in between."""
    found: list[Any] = [rounds.facts().facts, rounds.initialise().without_time()]
    if other is not None:
        other.initialise()
    for number in (1, 2, 3, 4):
        found.append(rounds.train(number).without_time())
        if number == 2:
            found.append(rounds.evaluate(2).without_time())
            if other is not None:
                other.train(1)
    return found
