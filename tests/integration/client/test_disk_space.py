"""A site whose disk has no room for its update does not train; once there is room, it does."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from fl_queue.client import outbox, round_job
from fl_queue.client.asking import Report
from fl_queue.client.assignment import ClientJob
from fl_queue.client.resident import Resident
from fl_queue.client.site import WorkerSettings
from fl_queue.common import disk_space
from fl_queue.errors import NoRoom
from fl_queue.protocol.records import Purpose
from fl_queue.protocol.trainer_messages import Answer, Request
from fl_queue.store import Store
from tests.support.manual_run import ManualRun

SIZE = 500_000
#: The model, the update, and more than a header.
NEEDED = 2 * (4 * SIZE + 8) + 64 * 1024


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Bytes that the file system reports as free; changed by the tests."""
    left = {"bytes": 0}
    monkeypatch.setattr(
        os,
        "statvfs",
        lambda path: SimpleNamespace(f_bavail=left["bytes"], f_frsize=1, f_blocks=1 << 30),
    )
    return left


def test_nothing_is_trained_that_could_not_be_kept(
    store: Store, tmp_path: Path, free: dict[str, int]
) -> None:
    hand = ManualRun(store, tmp_path, "a", SIZE)
    site = WorkerSettings(state_dir=tmp_path / "site", client="a")
    job = ClientJob(store, site, "a", hand.state, hand.round, hand.config, is_watched=False)
    loaded: list[str] = []
    handle = Resident(site).handle

    def ask(request: Request, report: Report) -> Answer:
        loaded.append(request.client)
        return handle(request, report)

    make = round_job.asking(ask, Purpose.train)

    for lacking in (NEEDED, 1_000_001, 1):
        free["bytes"] = NEEDED - lacking
        with pytest.raises(NoRoom) as caught:
            round_job.find_or_make(job, make)
        wanted = -(-lacking // 1_000_000)
        assert str(caught.value) == (
            f"{site.outbox}: no room on the disk for the model and the update ({NEEDED:,} bytes);"
            f" free {wanted} MB there, or use --state-dir"
        )
        assert not list(tmp_path.glob("site/*/*"))
    assert loaded == []

    free["bytes"] = NEEDED
    header, _ = round_job.find_or_make(job, make)
    assert loaded == ["a"]
    # The task builds another model than this run's: it was asked to train.
    assert header.reason.startswith("ModelMismatch: a tensor that the run does not have")
    assert outbox.read(outbox.path_of(site.outbox, hand.run, 1, "a")) is not None


def test_a_model_that_is_there_needs_no_room_again(
    store: Store, tmp_path: Path, free: dict[str, int]
) -> None:
    hand = ManualRun(store, tmp_path, "a", SIZE)
    site = WorkerSettings(state_dir=tmp_path / "site", client="a")
    job = ClientJob(store, site, "a", hand.state, hand.round, hand.config, is_watched=False)
    model = site.cache / hand.run / job.round.fetched
    model.parent.mkdir(parents=True)
    model.touch()

    with pytest.raises(NoRoom, match=r"for the update \(2,065,544 bytes\); free 3 MB there"):
        round_job.find_or_make(job, round_job.asking(Resident(site).handle, Purpose.train))


def test_a_file_system_that_does_not_report_its_size_is_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        os, "statvfs", lambda path: SimpleNamespace(f_bavail=0, f_frsize=0, f_blocks=0)
    )
    disk_space.check(tmp_path / "not" / "there", 1 << 40, "the update")


def test_what_is_really_free_counts(tmp_path: Path) -> None:
    found = os.statvfs(tmp_path)
    disk_space.check(tmp_path / "not" / "there", 1, "the update")
    with pytest.raises(NoRoom):
        disk_space.check(tmp_path, found.f_blocks * found.f_frsize + 1, "the update")
