"""A site whose updates leave after approval there: bits, kills and declined updates."""

from __future__ import annotations

import json
import os
from typing import Any

from fl_queue.client import approval
from fl_queue.reporting import diagnosis, run_status
from fl_queue.store import keyspace
from tests.support import commands
from tests.support.commands import CommandResult
from tests.support.federation import Federation, kill, wait_for

#: No round is closed while the site decides; one update is enough for a version.
PATIENT = ("run.rounds=2", "round.cohort=2", "round.quorum=0.5", "round.grace_s=300")
EVALUATOR = False
FORKED = True
RUN = (*PATIENT, "train.epochs=1", "round.deadline_s=300", "run.evaluate_every=0")


def fl_queue(federation: Federation, *arguments: str) -> CommandResult:
    """A command at the site."""
    where = ["--state-dir", str(federation.redis.state_dir)]
    return commands.fl_queue(*arguments, *where, environment=os.environ)


def asked(federation: Federation, kind: str, after: str = "") -> str:
    """Name of the answer that waits, once there is one of that kind; ``after``: one that may still be there."""

    def there() -> list[approval.PendingUpdate]:
        found = approval.waiting(federation.redis.state_dir)
        return [item for item in found if item.header.kind == kind and item.name != after]

    return wait_for(f"an {kind} that waits", there)[0].name


def job_of(federation: Federation, run: str) -> dict[str, Any]:
    return federation.store.control.rounds.jobs(run, federation.round_of(run))["site-2"]


def test_what_waits_survives_kills_and_ends_with_the_same_bits_and_what_is_declined_ends_its_round(
    federation: Federation,
) -> None:
    control = federation.store.control
    calm = federation.digests_of("approved", *RUN)
    federation.stop("site-2")
    federation.start("site-2", "--approve")
    wait_for("site-2", lambda: control.clients.alive(15) == ["site-1", "site-2"])

    # Killed when its update is in the outbox, and again while that waits.
    fired = federation.arm("outbox.written", "kill", "site-2")
    run = federation.begin("approved", *RUN)
    name = asked(federation, "update")
    assert fired.exists()
    awaited = wait_for(
        "the site's report", lambda: control.clients.awaited_updates(["site-2"], run)["site-2"]
    )
    job = job_of(federation, run)
    assert (awaited.round, awaited.job, awaited.decided) == (1, job["job"], False)
    before = federation.worker_pid("site-2")
    kill(before)
    wait_for("another worker", lambda: federation.worker_pid("site-2") != before)
    wait_for(
        "its lease",
        lambda: control.leases.get(keyspace.client_holder("site-2")).get("pid") != before,
    )
    wait_for("site-1's update", lambda: "site-1" in control.receipts.of_round(run, 1))
    state = control.runs.get(run)
    assert state is not None
    reasons = diagnosis.why_open(federation.store, state)
    assert any(line.startswith("waiting for approval of site-2: its update is") for line in reasons)
    doing = run_status.clients(federation.store)[1].doing
    assert doing == f"waits for approval at its site: run {run} round 1"
    shown = json.loads(fl_queue(federation, "approve", "--json").stdout)[0]
    assert (shown["update"], shown["header"]["client"]) == (name, "site-2")
    assert [tensor["name"] for tensor in shown["tensors"]] == ["bias", "weight"]
    assert job_of(federation, run) == job  # All the time.

    assert "may leave" in fl_queue(federation, "approve", name).stdout
    federation.reach(run, 2)
    made = [entry["digest"] for entry in control.versions.all(run).values()]
    assert made[:2] == calm[:2]
    assert federation.committed(run)[0].accepted["site-2"] == shown["header"]["body_digest"]
    assert federation.trained_in(run, 1) == 2

    name = asked(federation, "update", after=name)
    done = fl_queue(federation, "approve", name, "--reject", "--reason", "no consent")
    assert "stays here" in done.stdout
    assert asked(federation, "evaluation")
    record = federation.committed(run)[1]
    assert record.rejected == {"site-2": "failed: declined by its site: no consent"}
    assert (list(record.accepted), record.reason) == (["site-1"], "1 of 2 updates in")
    fl_queue(federation, "approve", "--all")
    assert federation.finish(run).state == "completed"
    assert set(control.history.records(run)[-1].accepted) == {"site-1", "site-2"}
    outbox = federation.redis.state_dir / "outbox"
    wait_for("an empty outbox", lambda: not list(outbox.glob("site-2*")))
    wait_for(
        "no report", lambda: control.clients.awaited_updates(["site-2"], run)["site-2"] is None
    )
