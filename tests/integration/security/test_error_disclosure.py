"""
Whatever fails at a site: no cell, header, label, file, path, message or variable of it reaches Redis or a page.

Each secret of a test has the same random stem. It is planted wherever a site has words of its own, things are
made to fail through the jobs' own functions and real servers, and both servers are read whole, byte by byte,
with the control server's log of writes. The site's log has the text.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import secrets
import subprocess
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import redis
from click.testing import CliRunner
from fastapi import FastAPI

from fl_queue.cli import cli
from fl_queue.client.site import WorkerSettings
from fl_queue.store import Store, keyspace
from fl_queue.store.jobs import dispatch
from fl_queue.store.jobs.dispatch import JobTicket
from fl_queue.tasks.error_disclosure import FULL
from fl_queue.web import api
from fl_queue.web.connection import Connection
from fl_queue.web.event_feed import Feed
from tests.support.checkout import ROOT
from tests.support.federation import wait_for
from tests.support.images import save_image
from tests.support.in_process import computed_here  # noqa: F401
from tests.support.manual_run import ManualRun
from workers import client as worker
from workers import evaluator

#: A task of the site's own, which trains the model of ``ManualRun`` or fails in some way.
OWN = """
import logging, os, sys
from pathlib import Path
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset
from fl_queue.errors import ConfigError, DataError
from fl_queue.tasks import ClientData, Task

class Hard(BaseException): pass

class Bad(Dataset):
    classes = ("{stem}-label", "other")
    def __len__(self): return 4
    def __getitem__(self, index): raise ValueError("{stem}-sample")

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(8))
        self.register_buffer("n", torch.zeros(1, dtype=torch.int64))
    def forward(self, rows): return (rows * self.w).sum(1, keepdim=True)

class Own(Task):
    def build_model(self): return Model()

    def client_data(self, context):
        how = self.options["how"]
        if how == "value": raise ValueError("{stem}-cell " + os.environ["OWN_WORD"])
        if how == "class": raise type("{stem}Class", (KeyError,), dict())("{stem}-cell")
        if how == "config": raise ConfigError("{stem}-field", "{stem}-reason")
        if how == "data": raise DataError("/{stem}-path", "line 3: {stem}-cell")
        if how == "file": Path(context.data_dir, "{stem}.png").read_bytes()
        if how == "hard": raise Hard("{stem}-cell")
        if how == "sample": return ClientData(Bad(), TensorDataset(torch.zeros(0, 8), torch.zeros(0)))
        rows = torch.arange(32.0).reshape(4, 8)
        return ClientData(*[TensorDataset(rows, torch.tensor([0.0, 1.0, 1.0, 0.0]))] * 2)

    def test_data(self, data_dir):
        raise ValueError("{stem}-test")

    def describe(self, data):
        return dict(classes=["{stem}-a", "cat"], units="{stem}-unit") if self.options["how"] == "describe" else dict()

    def loss(self, output, target, context=None):
        if self.options["how"] == "log" and context.logged is not None:
            context.log(**dict([("{stem}-name", 1.0)]))
        if self.options["how"] == "live":
            context.log(gap=float(os.environ["OWN_GAP"]))
        return nn.functional.binary_cross_entropy_with_logits(output.squeeze(1), target)

    def train(self, model, data, context, on_epoch):
        found = super().train(model, data, context, on_epoch)
        if self.options["how"] == "sums": return dict([("{stem}_sum", "x")])
        if self.options["how"] == "mean": return dict([("{stem}-mean", 1.0)])
        if self.options["how"] == "named": return dict([("{stem} name", 1.0)])
        if self.options["how"] == "listed":
            logging.warning("{stem}")  # As own tasks do: it stays in the site's log.
            return dict(found, **{"confusion": [["{stem}-label"]]})
        return found
"""


def at(text: str) -> str:
    """Place of a part of it, as errors name it."""
    (line,) = [
        number for number, row in enumerate(OWN.splitlines(), 1) if text in row.replace('"', "")
    ]
    return f"line {line} of own_told"


BROKEN = 'raise ImportError("{stem}-import")'


@dataclass(frozen=True)
class Secret:
    """A site whose every word has a stem that nothing else has. Args: ``run``: whose client b it is."""

    stem: str
    folder: Path
    store: Store
    monkeypatch: pytest.MonkeyPatch

    @property
    def data(self) -> Path:
        return self.folder / f"{self.stem}-data"

    @property
    def site(self) -> WorkerSettings:
        servers = self.store.servers
        return WorkerSettings(
            servers.url,
            servers.blob_url,
            self.folder / f"{self.stem}-state",
            client="b",
            data_dir=str(self.data),
            allow=("own_told:*", "broken_told:*", "csv", "image-folder", "mnist"),
            min_examples=1,
            token="t",
        )

    def begin(self, *overrides: str, site: WorkerSettings | None = None) -> ManualRun:
        """A run of client b alone, whose job this process is about to do."""
        run = ManualRun(self.store, self.folder, ["b"], 8, "run.preflight=off", *overrides)
        for name, value in (site or self.site).to_environ().items():
            self.monkeypatch.setenv(name, value)
        self.monkeypatch.setenv("RQ_JOB_ID", self.ticket(run).job)
        return run

    def ticket(self, run: ManualRun) -> JobTicket:
        return JobTicket.from_dict(self.store.control.rounds.jobs(run.run, run.round.number)["b"])

    def everything(self) -> bytes:
        """All that both servers hold, and what was ever written to the control server."""
        control, data = self.store.control.redis, self.store.data.redis
        folder = Path(control.config_get("dir")["dir"])
        logs = [path.read_bytes() for path in folder.rglob("*.aof") if path.is_file()]
        found = [*logs, *contents(control), *contents(data)]
        return b"\n".join([*found, *(text for part in found for text in unpacked(part))])

    def assert_kept(self) -> None:
        """Nothing of it is on a server."""
        there = self.everything()
        at = there.lower().find(self.stem.lower().encode())
        assert at < 0, there[max(0, at - 300) : at + 200]


def contents(client: redis.Redis) -> Iterator[bytes]:
    """Keys and values of all types."""
    read = {
        b"string": lambda key: [client.get(key)],
        b"hash": lambda key: [part for pair in client.hgetall(key).items() for part in pair],
        b"list": lambda key: client.lrange(key, 0, -1),
        b"set": client.smembers,
        b"zset": lambda key: client.zrange(key, 0, -1),
        b"stream": lambda key: [
            part for _, fields in client.xrange(key) for pair in fields.items() for part in pair
        ],
    }
    for key in client.scan_iter("*", count=1000):
        yield key
        yield from read[client.type(key)](key)


def unpacked(value: bytes) -> Iterator[bytes]:
    """What RQ has packed."""
    for decode in (bytes, base64.b64decode):
        try:
            yield zlib.decompress(decode(value))
        except (ValueError, zlib.error):
            continue


@pytest.fixture
def secret(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Secret]:
    stem = f"Zyxomma{secrets.token_hex(4)}"
    made = Secret(stem, tmp_path, store, monkeypatch)
    code = tmp_path / f"{stem}-code"
    for folder in (code, made.data):
        folder.mkdir()
    (code / "own_told.py").write_text(OWN.replace("{stem}", stem))
    (code / "broken_told.py").write_text(BROKEN.replace("{stem}", stem))
    monkeypatch.syspath_prepend(str(code))
    monkeypatch.setenv("OWN_WORD", f"{stem}-environment")
    monkeypatch.setenv("PYTHONPATH", f"{code}:{ROOT}")
    rows = [f"age,{stem}-header,diagnosis,dose", f"41,1,{stem}-label,5", f"{stem}-cell,2,benign,6"]
    (made.data / "train.csv").write_text("\n".join(rows))
    (made.data / f"{stem}.csv").write_text("a,b\n1,2,3\n")
    for label, name in (("cat", f"{stem}-1"), ("dog", "2")):
        save_image(made.data / "train" / label / f"{name}.png", (180, 20, 20))
    (made.data / "train" / "cat" / f"{stem}-1.png").write_bytes(b"no image")
    yield made
    for module in ("own_told", "broken_told"):
        sys.modules.pop(module, None)


CSV = (
    "run.task=csv",
    "data.partition=site",
    "data.validation_fraction=0.5",
    'task.classes="benign,malignant"',
)
LABEL = (*CSV, "task.label=diagnosis")
OWN_TASK = ("run.task=own_told:Own", "data.partition=site")
IMAGES = ("run.task=image-folder", "data.partition=site", "task.image_size=32")
#: What fails where -> the config, and the beginning of its message.
FAILING = {
    "a label": (
        (*LABEL, 'task.features="dose"'),
        "DataError: column 3 (task.label): not one of task.classes; ",
    ),
    "a cell": (
        (*CSV, "task.label=diagnosis", 'task.classes="benign,{stem}-label"', 'task.features="age"'),
        "DataError: line 3, column 1 (task.features: age): not a number; ",
    ),
    "a cell of a column that is not listed": (
        (*CSV, "task.label=diagnosis", 'task.classes="benign,{stem}-label"'),
        "DataError: line 3, column 1 (of those the file names): not a number; ",
    ),
    "a column": ((*CSV, "task.label=sex"), "DataError: has no column sex (task.label); "),
    "a file": (
        (*LABEL, "task.file=none.csv"),
        "DataError: cannot be read: No such file or directory; see data.dir and task.file; ",
    ),
    "a class": (
        (*IMAGES, 'task.classes="cat,horse"'),
        "DataError: 1 of its class folders are not in task.classes; add them there; ",
    ),
    "a value": ((*OWN_TASK, "task.how=value"), f"ValueError ({at('how == value')}); "),
    "an error called after a label": (
        (*OWN_TASK, "task.how=class"),
        f"KeyError ({at('how == class')}); ",
    ),
    "a config error of own code": (
        (*OWN_TASK, "task.how=config"),
        f"ConfigError ({at('how == config')}); ",
    ),
    "a data error of own code": (
        (*OWN_TASK, "task.how=data"),
        f"DataError ({at('how == data')}); ",
    ),
    "a file of own code": (
        (*OWN_TASK, "task.how=file"),
        f"FileNotFoundError ({at('how == file')}); ",
    ),
    "a module": (
        ("run.task=broken_told:Own", "data.partition=site"),
        "run.task: broken_told cannot be imported: ImportError; ",
    ),
}
#: The same, where only training comes upon it.
IN_TRAINING = {
    "a sample": ((*OWN_TASK, "task.how=sample"), f"ValueError ({at('{stem}-sample')}); "),
    "a logged name": (
        (*OWN_TASK, "task.how=log"),
        "context.log: a name cannot be used; begin with a letter",
    ),
    "a name of a sum": (
        (*OWN_TASK, "task.how=named"),
        "run.task: train() of own_told:Own returned a sum whose name cannot be used; begin it with",
    ),
    "a list of labels": (
        (*OWN_TASK, "task.how=listed"),
        "run.task: train() of own_told:Own returned a list, not one of numbers alone; ",
    ),
    "a mean": (
        (*OWN_TASK, "task.how=mean"),
        "run.task: train() of own_told:Own returned what is no sum: means do not add up",
    ),
    "sums": (
        (*OWN_TASK, "task.how=sums"),
        "run.task: train() of own_told:Own returned a str, not a",
    ),
}


def overrides_of(secret: Secret, case: tuple[str, ...]) -> tuple[str, ...]:
    """A cell's label that the config names has to be the site's own."""
    for text in case:
        if "{stem}" in text:
            path = secret.data / "train.csv"
            path.write_text(path.read_text().replace(f"{secret.stem}-label", "malignant"))
    return tuple(text.replace("{stem}-label", "malignant") for text in case)


@pytest.mark.parametrize("what", [*FAILING, *IN_TRAINING])
def test_what_fails_in_training_stays_at_the_site(
    secret: Secret, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    case, expected = (FAILING | IN_TRAINING)[what]
    run = secret.begin(*overrides_of(secret, case))
    assert worker.train(run.run, run.round.number) == "pushed"
    secret.assert_kept()  # While it waits for the aggregator.
    assert secret.stem in caplog.text
    caplog.clear()

    run.work()

    reason = run.record.rejected["b"].removeprefix("failed: ")
    assert reason.startswith(expected)
    assert FULL in reason
    secret.assert_kept()
    assert secret.stem not in caplog.text  # What the aggregator logs.


@pytest.mark.parametrize("what", FAILING)
def test_what_fails_before_round_1_stays_at_the_site(
    secret: Secret, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    case, expected = FAILING[what]
    run = secret.begin(*overrides_of(secret, case))

    assert worker.tell_facts(run.run, run.state.segment) == "reported"

    facts = json.loads(secret.store.control.clients.site_facts("b", run.run, 1 << 16) or "")[
        "facts"
    ]
    assert facts["problem"].startswith(expected)
    assert facts["cannot"] == "yes"
    secret.assert_kept()
    assert secret.stem in caplog.text


@pytest.mark.parametrize(
    ("case", "facts"),
    [
        ((*OWN_TASK, "task.how=describe", "task.label=cat"), {"classes", "units"}),
        ((*LABEL, 'task.classes="benign,{stem}-label"'), {"columns"}),
        (IMAGES, {"classes"}),
    ],
)
def test_names_that_the_config_does_not_have_are_counted(
    secret: Secret, case: tuple[str, ...], facts: set[str]
) -> None:
    path = secret.data / "train.csv"
    path.write_text(path.read_text().replace(f"{secret.stem}-cell", "52"))
    folder = secret.data / "train"
    (folder / "cat").rename(folder / f"{secret.stem}-cat")
    save_image(folder / f"{secret.stem}-cat" / f"{secret.stem}-1.png", (180, 20, 20))
    run = secret.begin(*overrides_of(secret, case))

    worker.tell_facts(run.run, run.state.segment)

    found = json.loads(secret.store.control.clients.site_facts("b", run.run, 1 << 16) or "")[
        "facts"
    ]
    assert "problem" not in found
    assert all("(check " in found[fact] for fact in facts)
    secret.assert_kept()


def test_a_damaged_image_is_no_file_name(secret: Secret, caplog: pytest.LogCaptureFixture) -> None:
    run = secret.begin(*IMAGES, 'task.classes="cat,dog"')

    worker.tell_facts(run.run, run.state.segment)

    found = json.loads(secret.store.control.clients.site_facts("b", run.run, 1 << 16) or "")[
        "facts"
    ]
    assert found["problem"] == (f"DataError: an image is not readable; repair or remove it; {FULL}")
    secret.assert_kept()
    assert f"{secret.stem}-1.png" in caplog.text


def test_an_evaluators_error_stays_with_it(
    secret: Secret, caplog: pytest.LogCaptureFixture
) -> None:
    run = secret.begin(*OWN_TASK, "task.how=value")

    assert evaluator.evaluate(run.run, 0) == "failed"

    entry = secret.store.control.evaluations.all(run.run)[0]
    assert entry["reason"] == f"ValueError ({at('{stem}-test')}); {FULL}"
    secret.assert_kept()
    assert f"{secret.stem}-test" in caplog.text


def test_a_job_that_dies_leaves_no_traceback_and_no_command_or_page_has_one(
    secret: Secret,
) -> None:
    """The real worker: what RQ itself writes of an error that no job catches."""
    run = secret.begin(*OWN_TASK, "task.how=hard")
    ticket, log = secret.ticket(run), secret.folder / "worker.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "workers.client"], stdout=out, stderr=out, env=os.environ
        )
    try:
        wait_for("the job's end", lambda: dispatch.job_state(run.store, ticket)[:6] == "failed")
    finally:
        process.terminate()
        process.wait(30)

    assert dispatch.failure(run.store, ticket) == f"Hard; {FULL}"
    secret.assert_kept()
    assert f"{secret.stem}-cell" in log.read_text()
    for text in (*commands(secret, run.run), *answers(secret, run.run)):
        assert secret.stem not in text


def commands(secret: Secret, run: str) -> Iterator[str]:
    """Output of an operator's commands."""
    servers = secret.store.servers
    environment = {
        "FLQ_REDIS_URL": servers.url,
        "FLQ_REDIS_BLOB_URL": servers.blob_url,
        "FLQ_STATE_DIR": str(secret.folder / "operator"),
    }
    for command in (
        f"status {run}",
        f"events {run}",
        f"history {run}",
        "clients",
        f"inspect {run}",
    ):
        done = CliRunner().invoke(cli, [*command.split(), "--json"], env=environment)
        yield done.output
    assert done.output


def answers(secret: Secret, run: str) -> Iterator[str]:
    """Answers of the page's API."""
    connection = Connection(lambda: secret.store, secret.folder)
    app = FastAPI()
    app.include_router(api.router(connection, Feed(connection, {}), ()))  # type: ignore[arg-type]
    for path in ("runs", f"runs/{run}", f"runs/{run}/history", f"runs/{run}/events", "clients"):
        answer = asyncio.run(ask(app, f"/api/v1/{path}"))
        assert answer.startswith("200 ")
        yield answer


async def ask(app: Any, path: str) -> str:
    """Status and body of a GET."""
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": []}
    await app(scope, receive, send)
    body = b"".join(message.get("body", b"") for message in sent)
    return f"{sent[0]['status']} {body.decode()}"


@pytest.mark.parametrize("approve", [False, True])
def test_nothing_made_of_data_is_in_events_before_its_approval(
    secret: Secret, approve: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    gap = f"0.{secrets.randbelow(10**9) + 10**9}7"  # A last digit that a float prints.
    secret.monkeypatch.setenv("OWN_GAP", gap)
    site = replace(secret.site, approve=approve)
    run = secret.begin(*OWN_TASK, "task.how=live", "train.epochs=1", site=site)

    outcome = worker.train(run.run, run.round.number)

    streams = {keyspace.client_events("b"): "0-0"}
    events = [event for _, _, event in secret.store.control.events.read(streams, None)]
    (epoch,) = [event for event in events if event["event"] == "epoch"]
    steps = {"event", "at", "run", "round", "epoch", "epochs"}
    if approve:
        assert outcome == "waits for a decision at its site"
        assert set(epoch) <= steps
        assert gap.encode() not in secret.everything()
        assert "num_examples" not in secret.store.control.clients.get("b")
    else:
        assert set(epoch) - steps == {"accuracy", "loss", "logged"}
        assert gap.encode() in secret.everything()
        assert secret.store.control.clients.get("b")["num_examples"] == "4"
