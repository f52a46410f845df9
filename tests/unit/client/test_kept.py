"""
A process that keeps the task and its data makes the bits of fresh ones; what would change them ends it.

Each phase begins with its own seed (``tasks.phases``), a context notes what is read of it (``tasks.noted_context``).
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fl_queue.client import kept, value_marks
from fl_queue.client.asking import Ask, Report
from fl_queue.client.resident import Resident
from fl_queue.client.site import WorkerSettings
from fl_queue.client.site_task import context_of
from fl_queue.config.run_config import RunConfig
from fl_queue.data.idx import encode_idx
from fl_queue.errors import DataError
from fl_queue.protocol.trainer_messages import Answer, Call, Request
from fl_queue.tasks import fingerprint
from fl_queue.tasks.base import ClientData
from fl_queue.tasks.context import ClientContext
from tests.support.images import save_image
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


@pytest.fixture(autouse=True)
def _own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
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


NAIVE: dict[str, dict[str, Any]] = {
    "mnist": {"run": {"task": "mnist-3v7"}},
    "csv": CSV,
    "function": {"run": {"task": "kept_own:made"}},
    "declaring": {"run": {"task": "kept_own:declaring"}},
    "class": {"run": {"task": "kept_own:Own"}},
    "round": {"run": {"task": "kept_own:Own"}, "task": {"reads_round": True}},
    "scaffold": CSV | {"aggregation": {"strategy": "scaffold", "weighting": "uniform"}},
    "ditto": {"run": {"task": "kept_own:made"}, "aggregation": {"strategy": "ditto"}},
    "finetuned": CSV | {"train": {"finetune_epochs": 1}},
}


@pytest.mark.parametrize("case", NAIVE)
def test_kept_data_change_no_bit(tmp_path: Path, case: str) -> None:
    config = config_of(NAIVE[case])
    one = site_of(tmp_path, "fresh")
    wanted = digest_of(SiteRounds(one, config, fresh(one)))
    other = site_of(tmp_path, "resident")
    ask, changed = resident(other)
    between = SiteRounds(other, config_of(CSV), ask, run="run-ba9876543210")

    found = digest_of(SiteRounds(other, config, ask), between)

    assert found == wanted
    assert not any(changed), changed
    assert found[-1].header.metrics != found[-2].header.metrics


@pytest.mark.parametrize(
    ("leak", "word"),
    [
        ("attribute", "task attribute 'seen'"),
        ("global", "global 'CALLS' of kept_own"),
        ("generator", "task attribute 'rng'"),
        ("torch", "the samples"),
        ("numpy", "the samples"),
        ("cwd", "the working folder"),
        ("environ", "the environment"),
        ("dtype", "torch's default dtype"),
        ("thread", "the threads"),
    ],
)
def test_what_a_training_leaves_behind_is_named_and_changes_no_later_round(
    tmp_path: Path, leak: str, word: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    config = config_of({"run": {"task": "kept_own:Own"}, "task": {"leak": leak}})
    one = site_of(tmp_path, "fresh")
    wanted = digest_of(SiteRounds(one, config, fresh(one)))
    other = site_of(tmp_path, "resident")
    before = str(Path.cwd()), dict(os.environ), torch.get_default_dtype()
    ask, changed = resident(other)

    found = digest_of(SiteRounds(other, config, ask))

    assert [word] in changed
    assert f"{word} changed in training" in caplog.text
    assert (str(Path.cwd()), dict(os.environ), torch.get_default_dtype()) == before
    assert found == wanted


def test_data_are_read_once_and_again_when_something_that_they_depend_on_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, reads = site_of(tmp_path, "state"), []
    read = kept.Kept._read
    monkeypatch.setattr(kept.Kept, "_read", lambda *args: (reads.append(1), read(*args))[1])
    ask, _ = resident(site)
    rounds = SiteRounds(site, config_of(CSV), ask)
    rounds.facts()
    rounds.initialise()
    rounds.train(1)
    rounds.train(2)
    rounds.evaluate(2)
    assert len(reads) == 1

    (tmp_path / "data" / "train.csv").write_text(TABLE.replace("60.5", "75.5"))
    again = replace(rounds, arrays=dict(rounds.arrays), ask=fresh(site))
    changed = rounds.train(3)
    assert len(reads) == 2
    assert changed.without_time() == again.train(3).without_time()

    rounds.score()
    rounds.score()
    assert len(reads) == 3


def test_a_log_or_the_state_in_the_data_folder_does_not_have_a_table_read_again(
    tmp_path: Path,
) -> None:
    site = site_of(tmp_path, "data/state")
    data, one = Path(site.data_dir), Resident(site)
    rounds = SiteRounds(site, config_of(CSV), one.handle)
    rounds.initialise()
    rounds.train(1)
    [first] = one._kept._data.values()
    (data / "worker.log").write_text("round 1 is done")

    rounds.train(2)
    assert [*one._kept._data.values()] == [first]

    (data / "train.csv").write_text(TABLE.replace("60.5", "75.5"))
    rounds.train(3)
    [changed] = one._kept._data.values()
    assert changed.found is not first.found


def _digits(data: Path) -> Path:
    for part in ("train", "t10k"):
        labels = np.tile(np.array([3, 7], np.uint8), 20)
        images = np.zeros((40, 28, 28), np.uint8)
        (data / f"{part}-images-idx3-ubyte").write_bytes(encode_idx(images))
        (data / f"{part}-labels-idx1-ubyte").write_bytes(encode_idx(labels))
    return data / "train-labels-idx1-ubyte"


def _images(data: Path) -> Path:
    for number in range(16):
        save_image(data / "train" / "ab"[number % 2] / f"{number}.png", (number, 0, 0))
    return data / "train" / "a" / "more.png"


FILES: dict[str, tuple[dict[str, Any], Callable[[Path], Path]]] = {
    "csv": (CSV, lambda data: data / "train.csv"),
    "idx": (
        {"run": {"task": "mnist-3v7"}, "data": {"source": "full", "partition": "site"}},
        _digits,
    ),
    "images": ({"run": {"task": "image-folder"}, "data": {"partition": "site"}}, _images),
}


@pytest.mark.parametrize("case", FILES)
@pytest.mark.parametrize("derived", [False, True])
def test_a_built_in_task_depends_on_the_files_that_it_reads_alone(
    tmp_path: Path, case: str, derived: bool
) -> None:
    raw, made = FILES[case]
    site, config = site_of(tmp_path, "state"), config_of(raw)
    changing, log = made(Path(site.data_dir)), Path(site.data_dir) / "worker.log"
    holder = kept.Kept(site)
    asked = SiteRounds(site, config, fresh(site)).request(Call.train, 1)
    task = holder.task(asked, config)
    if derived:
        # A class that reads by itself may read other files than the one from which it is derived.
        own = type(task)
        reads = {"client_data": lambda self, context: own.client_data(self, context)}
        task.__class__ = type("Derived", (own,), reads)
    context = context_of(site, config, asked)

    first = holder.client_data(task, context)
    log.write_text("a line")
    second = holder.client_data(task, context)
    assert (second is first) is not derived

    content = changing.read_bytes() if changing.exists() else b""
    changing.write_bytes(content)
    assert holder.client_data(task, context) is not second


@pytest.mark.parametrize("leak", ["fails"])
def test_nothing_is_kept_after_a_failure(tmp_path: Path, leak: str) -> None:
    site = site_of(tmp_path, "state")
    config = config_of({"run": {"task": "kept_own:Own"}, "task": {"leak": leak}})
    one = Resident(site)
    rounds = SiteRounds(site, config, one.handle)
    rounds.initialise()
    rounds.train(1)
    task = one._kept._task

    assert one.handle(rounds.request(Call.train, 2), print).outcome == "failed"

    rounds.train(3)
    assert one._kept._task is not task


def test_a_task_that_wants_none_of_it_is_new_each_time(tmp_path: Path) -> None:
    site = site_of(tmp_path, "state")
    ask, changed = resident(site)
    rounds = SiteRounds(site, config_of({"run": {"task": "kept_own:Own"}}), ask)
    rounds.initialise()
    sys.modules["kept_own"].Own.keep = False  # type: ignore[attr-defined]

    rounds.train(1)

    assert changed == [[], ["the task's keep is False"]]


def test_files_that_change_while_they_are_read_are_an_error(tmp_path: Path) -> None:
    site = site_of(tmp_path, "state")
    holder = kept.Kept(site)
    asked = SiteRounds(site, config_of(CSV), fresh(site)).request(Call.train, 1)
    task = holder.task(asked, config_of(CSV))
    context = replace(context_of(site, config_of(CSV), asked), data_dir=site.data_dir)

    def read(noted: Any) -> Any:
        (Path(site.data_dir) / "more.csv").write_text(str(np.random.default_rng().random()))

    task.depends_on = lambda context: None  # type: ignore[method-assign]
    # The folder as a whole: something else in it may change all the time.
    assert not holder._read(task, context, read).holds(context, None)
    task.depends_on = lambda context: [Path(site.data_dir) / "more.csv"]  # type: ignore[method-assign]
    with pytest.raises(DataError, match="change while they are read"):
        holder._read(task, context, read)


def test_a_file_that_the_task_names_later_is_read(tmp_path: Path) -> None:
    site = site_of(tmp_path, "state")
    holder = kept.Kept(site)
    asked = SiteRounds(site, config_of(CSV), fresh(site)).request(Call.train, 1)
    task = holder.task(asked, config_of(CSV))
    context = replace(context_of(site, config_of(CSV), asked), data_dir=site.data_dir)
    parts = tmp_path / "parts"
    parts.mkdir()
    task.depends_on = lambda context: sorted(parts.glob("*.csv"))  # type: ignore[method-assign]

    def read(context: ClientContext) -> ClientData:
        names: Any = [part.name for part in sorted(parts.glob("*.csv"))]
        return ClientData(names, names)

    task.client_data = read  # type: ignore[method-assign]
    (parts / "a.csv").write_text("1")
    first = holder.client_data(task, context)
    assert holder.client_data(task, context) is first

    (parts / "b.csv").write_text("2")
    assert holder.client_data(task, context).train == ["a.csv", "b.csv"]


def test_files_that_are_opened_are_noted_and_programs_too(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"1")
    with fingerprint.watching() as opened:
        path.read_bytes()
        np.fromfile(path, np.uint8)
        (tmp_path / "written").write_text("x")
    assert opened.paths == {str(path)}
    assert not opened.is_open
    with fingerprint.watching() as opened:
        os.system("true")
    assert opened.is_open


def test_a_fingerprint_has_size_time_and_what_came_or_went(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    seen = [fingerprint.taken([tmp_path])]
    (tmp_path / "a").write_text("2")
    seen.append(fingerprint.taken([tmp_path]))
    (tmp_path / "b").touch()
    seen.append(fingerprint.taken([tmp_path]))
    (tmp_path / "b").unlink()
    seen.append(fingerprint.taken([tmp_path]))
    assert all(one != other for one, other in pairwise(seen))
    assert fingerprint.taken([tmp_path / "none"]) == {str(tmp_path / "none"): None}


@pytest.mark.parametrize("where", [0, 499, 999])
def test_a_write_into_a_small_array_is_seen_wherever_it_is(where: int) -> None:
    values = np.zeros(1000, np.float32)
    before = value_marks.sampled(values)
    values[where] = 1
    assert value_marks.sampled(values) != before
