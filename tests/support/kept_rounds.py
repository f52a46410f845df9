"""
A client's rounds in fresh processes and in one that stays, with a task that draws from all generators and may leak.

A test file that uses it imports the fixture ``own_module``, too.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from fl_queue.client.asking import Ask, Report
from fl_queue.client.resident import Resident
from fl_queue.client.site import WorkerSettings
from fl_queue.client.trainer.serve import COMPILER
from fl_queue.config.run_config import RunConfig
from fl_queue.config.task_catalog import TASKS
from fl_queue.protocol.trainer_messages import Answer, Request
from tests.support.site_rounds import SiteRounds, settings_of

OWN = '''
import os, random, threading
import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset
from fl_queue.tasks import ArrayTask, ClientData, Task
from fl_queue.tasks.arrays import Rows

CALLS = []

class Means(ArrayTask):
    """A model of arrays."""

    def initial_arrays(self):
        return {"mean": np.random.normal(size=3), "count": np.array(0)}

    def client_data(self, context):
        x, y = np.random.normal(size=(60, 3)), np.random.randint(0, 2, 60)
        return ClientData(Rows(x[:40], y[:40]), Rows(x[40:], y[40:]))

    def fit(self, arrays, rows, context):
        drawn = np.random.permutation(len(rows[0]))[:8]
        return {"mean": 0.5 * arrays["mean"] + rows[0][drawn].mean(axis=0), "count": arrays["count"] + 8}

    def score(self, arrays, rows, context):
        return {"num_examples": len(rows[0]), "gap_sum": float(np.abs(rows[0] - arrays["mean"]).sum())}

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
    code = tmp_path / "code"
    code.mkdir()
    (code / "kept_own.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(code))
    sys.modules.pop("kept_own", None)
    with on_one_thread():
        yield
    sys.modules.pop("kept_own", None)


@contextmanager
def on_one_thread() -> Iterator[None]:
    """Torch on one thread: a process with a pool of them cannot be forked."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def fresh(site: WorkerSettings) -> Ask:
    """Each request in a process of its own."""

    def ask(request: Request, report: Report) -> Answer:
        with staying(site) as (once, _):
            return once(request, report)

    return ask


@contextmanager
def staying(site: WorkerSettings) -> Iterator[tuple[Ask, list[list[str]]]]:
    """All requests in one other process, tidied after each; and what the marks found, once it has ended."""
    mine, other = multiprocessing.Pipe()
    child = os.fork()
    if not child:
        mine.close()
        _serve(site, other)
    other.close()
    changed: list[list[str]] = []

    def ask(request: Request, report: Report) -> Answer:
        mine.send(json.dumps(request.to_dict()))
        answer, found = mine.recv()
        changed.append(found)
        return Answer.from_dict(answer)

    try:
        yield ask, changed
    finally:
        mine.close()
        os.waitpid(child, 0)


def _serve(site: WorkerSettings, requests: Any) -> NoReturn:
    try:
        one = Resident(site)
        while True:
            answer = one.handle(
                Request.from_dict(json.loads(requests.recv())), lambda progress: None
            )
            requests.send((answer.to_dict(), one.tidy()))
    except EOFError:
        os._exit(0)
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
        os._exit(1)


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
    return settings_of(folder / name, data_dir=str(data), allow=("kept_own:*", *TASKS))


def config_of(raw: dict[str, Any]) -> RunConfig:
    small = {"epochs": 2, "batch_size": 8} | raw.get("train", {})
    return RunConfig.from_dict(raw | {"train": small})


def digest_of(rounds: SiteRounds, other: SiteRounds | None = None, last: int = 4) -> list[Any]:
    """Everything that some rounds send and keep, with facts, evaluations and another run in between."""
    found: list[Any] = [rounds.facts().facts, rounds.initialise().without_time()]
    if other is not None:
        other.initialise()
    for number in range(1, last + 1):
        found.append(rounds.train(number).without_time())
        if number == 2:
            found.append(rounds.evaluate(2).without_time())
            if other is not None:
                other.train(1)
    return found


def check_same_bits(folder: Path, config: RunConfig, last: int = 2, **settings: Any) -> list[Any]:
    """
    A client's rounds in fresh processes and in one that stays, which must be equal.

    Args:
        folder: Its data are in the folder ``data`` of this one.
        last: Number of the last round.
        settings: Of the site.

    Returns:
        What the rounds send and keep.
    """
    if config.train.optimizer != "sgd":
        # Once here and not in each process; it takes a second or two.
        importlib.import_module(COMPILER)
    one = replace(site_of(folder, "fresh"), **settings)
    other = replace(site_of(folder, "staying"), **settings)
    with on_one_thread(), staying(other) as (ask, changed):
        wanted = digest_of(SiteRounds(one, config, fresh(one)), last=last)
        found = digest_of(SiteRounds(other, config, ask), last=last)
    assert found == wanted
    assert not any(changed), changed
    assert found[-1].body != found[2].body, "the rounds are different ones"
    return found
