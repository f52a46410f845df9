"""A site that cannot reach the data server is shown so to the operator, and no longer than it lasts."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from fl_queue.client import outbox
from fl_queue.client.site import WorkerSettings
from fl_queue.coordinator.operations import controls
from fl_queue.protocol.events import TrainingStarted
from fl_queue.reporting import diagnosis, run_status
from fl_queue.reporting.diagnosis import DiagnosisContext
from fl_queue.store import DATA_WAIT, Store, keyspace
from tests.support.federation import wait_for
from tests.support.in_process import computed_here  # noqa: F401
from tests.support.manual_run import ManualRun
from workers import client as worker


class Away:
    """A run with a site whose data server is not at its URL, until ``appear``."""

    def __init__(self, store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store, self.hand = store, ManualRun(store, folder, "ab", 8)
        self.job = store.control.rounds.jobs(self.hand.run, 1)["b"]["job"]
        self.link = folder / "data.sock"
        site = WorkerSettings(store.servers.url, f"unix://{self.link}", folder / "site", "b")
        self.outbox = site.outbox
        for name, value in {**site.to_environ(), "RQ_JOB_ID": self.job}.items():
            monkeypatch.setenv(name, value)
        store.control.leases.hold(keyspace.client_holder("b"), "t", 600, {"job": self.job})
        self.answers: list[str] = []
        self._thread = threading.Thread(
            target=lambda: self.answers.append(worker.train(self.hand.run, 1))
        )

    def begin(self) -> None:
        self._thread.start()

    def appear(self) -> None:
        self.link.symlink_to(unquote(urlsplit(self.store.servers.blob_url).path))

    def finish(self) -> str:
        self._thread.join(120)
        assert not self._thread.is_alive()
        return self.answers[0]

    def status(self) -> str:
        """Lines of ``status`` about the site."""
        lines = diagnosis.why_open(self.store, self.hand.state, DiagnosisContext(True, ""))
        return next((line for line in lines if line.startswith("waiting for b: ")), "")

    def doing(self) -> str:
        """State of the site in ``clients``."""
        return next(each.doing for each in run_status.clients(self.store) if each.client == "b")


@pytest.fixture
def away(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Away]:
    made = Away(store, tmp_path, monkeypatch)
    yield made
    if made.hand.state.active:
        controls.cancel(store, made.hand.run)
    if made._thread.is_alive():
        made._thread.join(60)


def test_a_site_that_cannot_fetch_the_model_reports_it_until_its_round_ends(
    away: Away, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert away.status().startswith("waiting for b: not started")
    away.begin()

    wait_for("status", lambda: "waits for the data server since" in away.status())
    assert "Redis is not reachable; the full message is in the log of its worker" in away.status()
    assert "data.sock" not in away.status()  # Where the server is at that site is its own matter.
    assert "not started" not in away.status()
    away.store.control.clients.record_heartbeats()
    assert away.doing().startswith("waits for the data server: StoreUnavailable: Redis is not")
    # A report of an earlier job is ignored.
    away.store.control.leases.hold(keyspace.client_holder("b"), "t", 600, {"job": "b_another_1_x"})
    assert "not started" in away.status()

    controls.cancel(away.store, away.hand.run)
    assert away.finish() == "round 1 ended before its model could be read"
    assert DATA_WAIT not in away.store.control.clients.get("b")
    assert "Traceback" not in caplog.text
    waiting = [line for line in caplog.messages if "waits for the data server" in line]
    assert len(waiting) == len(set(waiting)) <= 2  # Once a minute.


def test_a_site_that_cannot_send_its_update_reports_it_until_it_can(away: Away) -> None:
    hand = away.hand
    body = hand.body("b")
    outbox.write(away.outbox, hand.header("update", "b", body), [body])
    away.begin()
    wait_for("status", lambda: "waits for the data server since" in away.status())

    away.appear()

    assert away.finish() == "pushed"
    assert DATA_WAIT not in away.store.control.clients.get("b")
    hand.update("a")
    hand.work()
    assert sorted(hand.record.accepted) == ["a", "b"]


def test_the_hash_may_contain_anything(away: Away) -> None:
    for text in ("", "[]", "{", '{"job": 3}', '{"job": "", "since": 1.0, "why": "x"}'):
        away.store.control.clients.set_status("b", {DATA_WAIT: text or "x"})
        assert away.status().startswith("waiting for b: not started")
        assert away.store.control.clients.data_wait("b") is None


def test_a_site_at_work_for_another_run_is_not_called_idle(store: Store, tmp_path: Path) -> None:
    hand = ManualRun(store, tmp_path, "ab", 10)
    store.control.events.add_of_client("b", TrainingStarted(run="other-1", round=1, epochs=1))

    lines = diagnosis.why_open(store, hand.state, DiagnosisContext(True, ""))

    waiting = [line.partition(";")[0] for line in lines if line.startswith("waiting for")]
    assert waiting == [
        "waiting for a: not started",
        "waiting for b: its latest work was for another run",
    ]
