"""Data are kept as long as what they depend on is the same; nothing is kept after a failure."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_queue.client import kept, value_marks
from fl_queue.client.resident import Resident
from fl_queue.client.site_task import context_of
from fl_queue.data.idx import encode_idx
from fl_queue.errors import DataError
from fl_queue.protocol.trainer_messages import Call
from fl_queue.tasks.base import ClientData
from fl_queue.tasks.context import ClientContext
from tests.support.images import save_image
from tests.support.kept_rounds import CSV, TABLE, config_of, fresh, own_module, resident, site_of
from tests.support.site_rounds import SiteRounds

pytestmark = pytest.mark.usefixtures(own_module.__name__)


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


LISTINGS: dict[str, Callable[[Path], list[str]]] = {
    "listdir": lambda folder: os.listdir(folder),
    "bytes": lambda folder: [os.fsdecode(name) for name in os.listdir(os.fsencode(folder))],
    "scandir": lambda folder: [entry.name for entry in os.scandir(folder)],
    "iterdir": lambda folder: [path.name for path in folder.iterdir()],
    "walk": lambda folder: [name for _, _, files in os.walk(folder) for name in files],
    "fwalk": lambda folder: [name for _, _, files, _ in os.fwalk(folder) for name in files],
    "glob": lambda folder: [Path(path).name for path in glob.glob(f"{folder}/*.csv")],
    "rglob": lambda folder: [path.name for path in folder.rglob("*.csv")],
    "one name": lambda folder: [Path(path).name for path in glob.glob(f"{folder}/b.csv")],
}


@pytest.mark.parametrize("case", LISTINGS)
@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "in a thread"])
def test_a_file_that_is_added_to_a_folder_that_was_listed_is_read(
    tmp_path: Path, case: str, elsewhere: bool
) -> None:
    site = site_of(tmp_path, "state")
    holder = kept.Kept(site)
    asked = SiteRounds(site, config_of(CSV), fresh(site)).request(Call.train, 1)
    task = holder.task(asked, config_of(CSV))
    context = replace(context_of(site, config_of(CSV), asked), data_dir=site.data_dir)
    parts = tmp_path / "parts"
    parts.mkdir()
    (parts / "a.csv").write_text("1")

    def read(context: ClientContext) -> ClientData:
        with ThreadPoolExecutor(1) as pool:
            listing = LISTINGS[case]
            names: Any = sorted(
                pool.submit(listing, parts).result() if elsewhere else listing(parts)
            )
        return ClientData(names, names)

    task.depends_on = lambda context: None  # type: ignore[method-assign]
    task.client_data = read  # type: ignore[method-assign]
    first = holder.client_data(task, context)
    assert holder.client_data(task, context) is first

    (parts / "b.csv").write_text("2")
    assert "b.csv" in holder.client_data(task, context).train
    # A file of a folder that was listed counts as one that was opened.
    second = holder.client_data(task, context)
    if case != "one name":
        (parts / "a.csv").write_text("12")
        assert holder.client_data(task, context) is not second


@pytest.mark.parametrize("where", [0, 499, 999])
def test_a_write_into_a_small_array_is_seen_wherever_it_is(where: int) -> None:
    values = np.zeros(1000, np.float32)
    before = value_marks.sampled(values)
    values[where] = 1
    assert value_marks.sampled(values) != before
