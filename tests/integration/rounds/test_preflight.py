"""Sites that differ are named before round 1, and left out; real workers, one of them with other labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fl_queue import metrics
from fl_queue.coordinator.rounds import runs
from fl_queue.reporting import rounds_table
from fl_queue.store import keyspace
from tests.support.checkout import ROOT
from tests.support.federation import Federation, kill, wait_for

EVALUATOR = False
CLIENTS = 3
FORKED = True
ALLOW = "sites:Sites"
#: What a site is like comes from a file of its own, so that a test can change it.
TASK = """
import json
import os
import time
from pathlib import Path
from fl_queue.tasks.mnist import ThreesAndSevens

class Sites(ThreesAndSevens):
    def describe(self, data):
        return self.own["describe"]

    def client_data(self, context):
        self.own = json.loads((Path(os.environ["SITES"]) / f"{context.client}.json").read_text())
        time.sleep(self.own.get("slow_s", 0))
        if "broken" in self.own:
            raise ValueError(self.own["broken"])
        return super().client_data(context)

    def loss(self, output, target, context=None):
        context.log(batch=len(target))
        return super().loss(output, target)
"""
ONE = (
    "run.task=sites:Sites",
    "run.rounds=1",
    "round.cohort=1.0",
    "train.epochs=3",
    "run.evaluate_every=0",
    'task.names=["three", "seven", "3", "7"]',  # Names that the config has may be shown.
)
LABELS = {"classes": ["three", "seven"]}
OTHERS = {"classes": ["seven", "three"]}


def environment(folder: Path) -> dict[str, str]:
    (folder / "sites.py").write_text(TASK)
    return {"PYTHONPATH": f"{folder}:{ROOT}", "SITES": str(folder)}


def sites_are(federation: Federation, **sites: dict[str, Any]) -> None:
    """What the next run finds at each site; those that are not named are alike."""
    for client in federation.clients:
        settings = {"describe": LABELS} | sites.get(client.replace("-", "_"), {})
        (federation.folder / f"{client}.json").write_text(json.dumps(settings))


def events(federation: Federation, run: str, kind: str) -> list[dict[str, Any]]:
    found = federation.store.control.events.read({keyspace.events(run): "0-0"}, None)
    return [event for _, _, event in found if event["event"] == kind]


def cohorts(federation: Federation, run: str) -> list[list[str]]:
    return [record.cohort for record in federation.store.control.history.records(run)]


def test_a_site_with_other_labels_is_named_and_left_out(federation: Federation) -> None:
    sites_are(federation, site_2={"describe": OTHERS})
    run = federation.begin("labels", *ONE)
    assert federation.finish(run).state == "completed"

    (named,) = events(federation, run, "site_differs")
    assert named["client"] == "site-2"
    assert "classes 2: seven, three; others have 2: three, seven" in named["what"]
    assert all(cohort == ["site-1", "site-3"] for cohort in cohorts(federation, run))
    # What the task logs: a mean over steps, merged, in the record and live in the events.
    (record, *_) = federation.committed(run)
    logged = metrics.finish(record.train)["batch"]
    assert rounds_table.training([record]) == {1: {"batch": logged}}
    epochs = [
        e for e in federation.client_events("site-1") if e["event"] == "epoch" and e["run"] == run
    ]
    assert epochs[-1]["logged"]["batch"] > 1


def test_without_a_majority_the_run_waits_until_a_site_is_mended(federation: Federation) -> None:
    mine = {"describe": {"classes": ["3", "7"]}}
    sites_are(federation, site_2={"describe": OTHERS}, site_3=mine)
    run = federation.begin("not-known", *ONE)

    def reason() -> str:
        found = federation.store.control.runs.get(run)
        return found.reason if found and "neither side" in found.reason else ""

    shown = wait_for("the reason", reason)
    assert "site-2: 2: seven, three" in shown
    assert "site-3: 2: 3, 7" in shown
    assert "restart the workers" in shown
    doing = runs.describe_state(federation.store, runs.find_run(federation.store, "not-known"))
    assert "neither side" in doing

    sites_are(federation, site_3=mine)
    kill(
        federation.worker_pid("site-2")
    )  # Its supervisor starts another one, which is asked again.
    assert federation.finish(run).state == "completed"
    assert all(cohort == ["site-1", "site-2"] for cohort in cohorts(federation, run))
    (named,) = events(federation, run, "site_differs")
    assert named["client"] == "site-3"


def test_a_worker_killed_while_it_looks_costs_no_client_its_place(federation: Federation) -> None:
    sites_are(federation, site_2={"slow_s": 1.0})
    before = federation.trainers("site-2")  # Those of earlier runs may still be ending.
    run = federation.begin("killed", *ONE)
    kill(wait_for("its job", lambda: _trainer(federation, "site-2", run, before)))
    assert federation.finish(run).state == "completed"
    assert all(cohort == federation.clients for cohort in cohorts(federation, run))
    assert events(federation, run, "site_differs") == []
    assert (
        not federation.store.control.redis.keys(f"rq:job:site-2_{run}_0_*")
        or _asked(federation, run) > 1
    )


def _asked(federation: Federation, run: str) -> int:
    raw = federation.store.control.runs.site_reports(run)["site-2"]
    return int(json.loads(raw)["ticket"]["attempt"])


def _trainer(federation: Federation, client: str, run: str, before: list[int]) -> int:
    """Pid of the process that answers the question, once it has begun. Args: ``before``: other ones."""
    raw = federation.store.control.runs.site_reports(run).get(client)
    ticket = json.loads(raw)["ticket"] if raw else {}
    if federation.store.control.redis.hget(f"rq:job:{ticket.get('job')}", "status") != b"started":
        return 0
    return next((pid for pid in federation.trainers(client) if pid not in before), 0)


def test_warned_of_only_and_a_site_that_cannot_report(federation: Federation) -> None:
    sites_are(
        federation, site_2={"describe": OTHERS}, site_3={"broken": "the disk\nis not mounted"}
    )
    run = federation.begin("warned", *ONE, "run.preflight=warn", "round.quorum=2")
    assert federation.finish(run).state == "completed"

    named = {event["client"]: event["what"] for event in events(federation, run, "site_differs")}
    # One against one: of equals it is the first in the alphabet that is not named.
    assert "classes 2: three, seven; others have 2: seven, three" in named["site-1"]
    assert "left out" not in named["site-1"]
    assert named["site-3"].startswith("it cannot train: ValueError (line 16 of sites); the full")
    assert "the disk" not in named["site-3"]  # A message may quote the data.
    (first,) = federation.committed(run)
    # Left out, whatever else is only warned of: its rounds would all fail.
    assert first.cohort == ["site-1", "site-2"]
    assert first.ineligible["site-3"].startswith("it cannot train: ValueError")
    (left,) = events(federation, run, "clients_left_out")
    assert left["left_out"] == first.ineligible
