"""A file of another name in a state folder is left alone: it ends no worker, and is not removed."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from fl_queue.client import approval, outbox
from fl_queue.client.site import WorkerSettings
from fl_queue.models import host_cache, update_archive
from fl_queue.protocol.header import Header

RUN = "demo-3f2a9c"
FOREIGN = (
    "a_x.update",
    "a_x.waiting",
    "a_demo-3f2a9c_one.update",
    "a_demo-3f2a9c_one.waiting",
    "a_demo-3f2a9c_\u00b2.update",
    "a_demo-3f2a9c_1_2.waiting",
    "a__1.update",
    "a_..%_1.update",
    "a_.update",
)


@pytest.fixture
def site(tmp_path: Path) -> WorkerSettings:
    """One whose outbox has an update of round 2 that waits, and files of other names."""
    made = WorkerSettings(state_dir=tmp_path, client="a", approve=True)
    header = Header(kind="evaluation", run=RUN, round=2, client="a", token="t" * 16)
    path = outbox.write(made.outbox, header)
    approval.mark_pending(path, "a_demo-3f2a9c_2_0")
    for name in FOREIGN:
        (made.outbox / name).write_text("{}")
    return made


def test_an_outbox(site: WorkerSettings, caplog: pytest.LogCaptureFixture) -> None:
    asked = []

    def has_ended(run: str, number: int, client: str) -> bool:
        asked.append((run, number, client))
        return True

    with caplog.at_level(logging.WARNING):
        assert outbox.sweep(site.outbox, "a", has_ended) == 0
        assert outbox.sweep(site.outbox, "a", has_ended) == 0
    assert asked == [(RUN, 2, "a")]
    assert sorted(path.name for path in site.outbox.iterdir()) == sorted(FOREIGN)
    # Reported once, not every five seconds.
    assert len(caplog.records) == sum(name.endswith(".update") for name in FOREIGN)


def test_updates_that_wait_for_a_decision(site: WorkerSettings) -> None:
    assert f'"{RUN}"' in approval.pending_as_json(site)
    assert [item.name for item in approval.waiting(site.state_dir)] == [f"a_{RUN}_2"]
    (site.outbox / f"a_{RUN}_2.waiting").write_text('{"since": "yesterday", "job": 3}')
    assert approval.waiting(site.state_dir)[0].since == 0.0
    assert '"since":0.0' in approval.pending_as_json(site)


def test_fetched_models(tmp_path: Path) -> None:
    for name in ("lost+found", ".snapshot", RUN):
        (tmp_path / name / "folder").mkdir(parents=True)
    host_cache._keep_newest(tmp_path / RUN, "1" * 64, 0)
    host_cache.sweep(tmp_path, lambda run: True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".snapshot", "lost+found"]


def test_kept_updates(tmp_path: Path) -> None:
    folder = tmp_path / "updates" / RUN
    for name in ("1/folder", "\u00b2", "notes"):
        (folder / name).mkdir(parents=True)
    update_archive.keep_only(tmp_path, RUN, 1, {})
    update_archive.prune(tmp_path, RUN, [])
    assert sorted(path.name for path in folder.iterdir()) == ["notes", "\u00b2"]
