"""What a site decides for itself, at the site: its pauses, and how many examples it gives."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fl_queue.client import pausing
from fl_queue.client.site import WorkerSettings
from fl_queue.config import loading
from fl_queue.coordinator.rounds import lifecycle, runs
from fl_queue.protocol.records import Enrolment, RoundRecord
from fl_queue.store import PAUSED, Store, keyspace
from tests.support import commands
from tests.support.federation import Federation, wait_for
from tests.support.in_process import computed_here  # noqa: F401
from tests.support.manual_run import ManualRun
from workers import client as worker

EVALUATOR = False
CLIENTS = 2
FORKED = True
ALL_SITES = ("run.rounds=1", "round.cohort=1.0", "data.shares=2", "run.evaluate_every=0")


def fl_queue(federation: Federation, *arguments: str) -> str:
    """Output of a command at the site, which has no URL of any Redis."""
    where = ["--state-dir", str(federation.redis.state_dir)]
    done = commands.fl_queue(*arguments, *where, environment=os.environ)
    assert done.returncode == 0, done.stderr
    return done.stdout


def trained(federation: Federation, run: str) -> RoundRecord:
    """The record of the newest round that trained."""
    assert federation.finish(run).state == "completed"
    return federation.committed(run)[-1]


def one_more(federation: Federation, name: str, run: str) -> RoundRecord:
    """The record of one more round of a run that has ended."""
    loaded = runs.current_config(federation.store, run)
    runs.start_run(federation.store, name, loaded, 1)
    lifecycle.advance(federation.store, run)
    return trained(federation, run)


def test_a_paused_site_is_in_no_cohort_until_it_is_unpaused_whatever_is_restarted(
    federation: Federation,
) -> None:
    control = federation.store.control
    answer = fl_queue(federation, "pause", "site-2", "--reason", "new scanner")
    assert answer == "site-2 is paused\n"
    wait_for("the pause to be reported", lambda: control.clients.alive(15) == ["site-1"], 10)
    federation.stop("site-2")
    federation.start("site-2", "--max-examples", "20")
    wait_for("site-2", lambda: control.leases.get(keyspace.client_holder("site-2")))

    run = federation.begin("paused", *ALL_SITES)
    record = trained(federation, run)
    assert (record.cohort, record.eligible, record.missing) == (["site-1"], ["site-1"], [])
    shown = json.loads(fl_queue(federation, "clients", "--json"))[1]
    assert (shown["client"], shown["alive"]) == ("site-2", True)
    assert shown["paused"].startswith("paused by its site since 20")
    assert shown["doing"].endswith(" UTC: new scanner")

    assert fl_queue(federation, "unpause") == "site-1 was not paused\nsite-2 takes part again\n"
    wait_for("site-2", lambda: control.clients.alive(15) == ["site-1", "site-2"], 10)
    record = one_more(federation, "paused", run)
    assert record.cohort == ["site-1", "site-2"]
    assert record.weights["site-2"] == 20 < record.weights["site-1"]
    assert federation.trained_in(run, record.round) == 2
    receipt = control.receipts.of_round(run, record.round)["site-2"]
    assert (receipt.num_examples, receipt.environment["max_examples"]) == (20, 20)
    assert control.clients.get("site-2")["num_examples"] == "20"


def test_a_run_waits_for_a_paused_site_without_giving_up(store: Store) -> None:
    control = store.control
    for client in ("a", "b"):
        control.leases.hold(keyspace.client_holder(client), "t", 60, {})
    control.clients.set_status("b", {PAUSED: "paused by its site: why"})
    control.clients.record_heartbeats()
    control.redis.hset(keyspace.CLOCK, "settling_s", 0)
    loaded = loading.load("mnist-3v7", ("round.cohort=2", "run.preflight=off"), {})
    run = runs.start_run(store, "waiting", loaded, 1).run_id
    # Version 0 needs one, and is there: what follows needs both.
    control.redis.hset(keyspace.run(run), mapping={"version": 0, "round": 0, "digest": "0" * 64})

    def waited() -> tuple[float, str]:
        for _ in range(3):
            lifecycle.advance(store, run)
        state = control.runs.get(run)
        assert state is not None
        return state.waited_s, state.reason

    waited_s, reason = waited()
    assert waited_s == 0
    assert reason.endswith(
        "1 clients are alive; start more workers or lower round.cohort; b is paused by its site: why"
    )
    control.enrolments.write("b", Enrolment("key", revoked_at=1.0))
    waited_s, reason = waited()
    assert waited_s > 0
    assert "paused" not in reason


@pytest.fixture
def by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Store) -> ManualRun:
    """A run whose jobs of client b this process answers, at a site that lacks its data."""
    run = ManualRun(store, tmp_path, ["a", "b"], 8, "data.source=full")
    site = WorkerSettings(
        state_dir=tmp_path, client="b", data_dir=str(tmp_path / "Smith"), approve=True
    )
    pausing.register_client(site)
    urls = {"url": store.servers.url, "blob_url": store.servers.blob_url}
    for name, value in replace(site, **urls).to_environ().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(
        "RQ_JOB_ID", store.control.rounds.jobs(run.run, run.round.number)["b"]["job"]
    )
    return run


def rejected(run: ManualRun) -> str:
    """What becomes of the answer of client b."""
    assert worker.train(run.run, run.round.number) == "pushed"
    run.update("a")
    run.work()
    assert run.record.outcome == "abandoned"
    assert run.record.rejected["b"] in run.record.reason.replace(" b: ", " b: failed: ")
    return run.record.rejected["b"]


def test_a_round_that_has_selected_a_paused_site_need_not_wait_for_it(
    by_hand: ManualRun, tmp_path: Path
) -> None:
    pausing.pause(tmp_path, "b", "", datetime(2026, 11, 25, 12, 0, tzinfo=UTC))

    assert rejected(by_hand) == "failed: paused by its site since 2026-11-25 12:00 UTC"


def test_a_site_reports_what_to_mend_and_not_where_its_data_are(
    by_hand: ManualRun, caplog: pytest.LogCaptureFixture
) -> None:
    reasons = rejected(by_hand)
    assert reasons == (
        "failed: DataError: there is no such folder; correct data.dir or --data, or create it; "
        "the full message is in the log of its worker"
    )
    assert "Smith: there is no such folder" in caplog.text
