"""What an operator does, through the CLI, on a federation of real workers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fl_queue.store import keyspace
from tests.support import commands
from tests.support.commands import CommandResult
from tests.support.federation import Federation, wait_for

#: Trains until it is stopped.
ENDLESS = ("train.epochs=1000000", "round.cohort=2", "round.deadline_s=600")


def fl_queue(federation: Federation, *arguments: str) -> CommandResult:
    """A command of the operator, with nothing on its standard input."""
    where = ["--state-dir", str(federation.redis.state_dir)]
    return commands.fl_queue(*arguments, *where, environment=os.environ)


def keys_of(federation: Federation, run: str) -> set[str]:
    """Every key of a run on both servers, RQ's included."""
    servers = federation.store.control.redis, federation.store.data.redis
    return {
        key.decode() for server in servers for pattern in (f"*{{{run}}}*", f"*_{run}_*", f"*:{run}:*")
        for key in server.scan_iter(match=pattern, count=1000)
    }  # fmt: skip


def test_status_shows_why_a_round_is_open_and_cancel_stops_it_for_good(
    federation: Federation,
) -> None:
    run = federation.begin("endless", *ENDLESS)
    wait_for("training", lambda: len(federation.at_work()) == 2 and federation.trained(run) == 2)

    shown = fl_queue(federation, "status", "endless").stdout
    assert "0 of 2 updates in; needs 2 (round.quorum)" in shown
    assert "waiting for site-1: " in shown
    assert "job started by site-1_" in shown
    assert fl_queue(federation, "delete", "endless", "--yes").returncode == 2

    done = fl_queue(federation, "cancel", "endless")
    assert done.returncode == 0, done.stderr
    assert "cancelled at version 0" in done.stdout
    wait_for("their jobs to end", lambda: not federation.at_work(), 10)
    record = federation.store.control.history.records(run)[-1]
    assert (record.outcome, record.missing) == ("cancelled", federation.clients)
    assert "cancelled already" in fl_queue(federation, "cancel", "endless").stderr
    assert federation.store.control.redis.keys("rq:queue:flq-client-*") == []

    again = fl_queue(federation, "resume", "endless")
    assert "was cancelled: training goes on from version 0" in again.stdout
    wait_for("training again", lambda: federation.trained(run) == 4)
    fl_queue(federation, "cancel", "endless")

    unasked = fl_queue(federation, "delete", "endless")
    assert (unasked.returncode, "use --yes" in unasked.stderr) == (2, True)
    asked = subprocess.run(
        [sys.executable, "-m", "fl_queue", "delete", "endless", "--state-dir", str(federation.redis.state_dir)],
        input="n\n", capture_output=True, text=True, timeout=90,
    )  # fmt: skip
    assert (asked.returncode, "nothing was deleted" in asked.stdout) == (0, True)
    assert "Delete run endless" in asked.stderr
    assert federation.store.control.runs.id_of("endless") == run
    assert fl_queue(federation, "delete", "endless", "--yes").returncode == 0
    wait_for("its last jobs to end", lambda: not federation.at_work(), 10)
    wait_for("no key of it", lambda: not keys_of(federation, run), 45)
    assert not list((federation.redis.state_dir / "checkpoints").glob(f"{run}*"))

    # A run of the same name is another run, and meets nothing of the old one.
    other = federation.begin("endless", "run.rounds=1", "round.cohort=2")
    assert other != run
    assert federation.finish(other).state == "completed"


def test_a_failed_run_goes_on_after_resume(federation: Federation) -> None:
    run = federation.begin("short-handed", "run.rounds=1", "round.cohort=3", "round.deadline_s=3")
    state = federation.finish(run)
    assert (state.state, "start more workers" in state.reason) == ("failed", True)

    federation.start("site-3")
    try:
        wait_for("site-3", lambda: "site-3" in federation.store.control.clients.alive(15), 60)
        done = fl_queue(federation, "resume", "short-handed")
        assert "was failed: training goes on" in done.stdout
        assert federation.finish(run).state == "completed"
        resumed = fl_queue(federation, "resume", "short-handed")
        assert (resumed.returncode, "is completed" in resumed.stderr) == (2, True)
    finally:
        federation.stop("site-3")


def test_redrive_shows_why_a_job_fails_and_tries_again(federation: Federation) -> None:
    folder = federation.redis.state_dir / "checkpoints"
    hidden = folder.with_name("hidden")
    folder.rename(hidden)
    folder.write_text("not a folder")  # No checkpoint can be written: the round stays open.
    try:
        run = federation.begin("stuck", "run.rounds=1", "round.cohort=2")

        def failed() -> bool:
            job = federation.store.control.rounds.jobs(run, 0).get("aggregator", {})
            return int(job.get("attempt", 1)) > 3

        wait_for("attempts", failed)
        seen = wait_for(
            "a failure",
            lambda: json.loads(fl_queue(federation, "redrive", "stuck", "--json").stdout),
        )
        assert "checkpoint" in seen[0]["reason"]
    finally:
        folder.unlink()
        hidden.rename(folder)
    fl_queue(federation, "redrive", "stuck")

    assert federation.finish(run).state == "completed"
    assert "no job has failed" in fl_queue(federation, "redrive", "stuck").stdout


def test_verify_recomputes_every_round_and_notices_what_was_changed(
    federation: Federation,
) -> None:
    run = federation.begin("kept", "run.rounds=2", "round.cohort=2", "model.keep_updates=true")
    federation.finish(run)
    done = fl_queue(federation, "verify", "kept", "--json")
    assert done.returncode == 0, done.stderr
    assert [verdict["result"] for verdict in json.loads(done.stdout)] == ["same", "same"]

    base = federation.committed(run)[0].base_digest
    checkpoint = federation.redis.state_dir / "checkpoints" / run / f"{base}.safetensors"
    hidden = checkpoint.rename(checkpoint.with_suffix(".hidden"))
    (federation.redis.state_dir / "cache" / run / base).unlink(missing_ok=True)
    assert not federation.store.data.redis.keys(
        f"flq:chunk:{run}:{base}*"
    )  # The server keeps newer versions only.
    without_base = fl_queue(federation, "verify", "kept", "--json")
    hidden.rename(checkpoint)
    assert without_base.returncode == 0, without_base.stderr  # A round could be recomputed.
    found = json.loads(without_base.stdout)
    assert [verdict["result"] for verdict in found] == ["unknown", "same"]

    control = federation.store.control.redis
    record = json.loads(control.lindex(keyspace.history(run), 0) or b"")
    control.lset(keyspace.history(run), 0, json.dumps({**record, "digest": "0" * 64}))
    changed = fl_queue(federation, "verify", "kept", "1")
    assert (changed.returncode, "different" in changed.stdout) == (4, True)

    file = next((federation.redis.state_dir / "updates" / run / "2").iterdir())
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    damaged = fl_queue(federation, "verify", "kept", "2")
    assert (damaged.returncode, "damaged" in damaged.stdout) == (3, True)

    without = federation.begin("not-kept", "run.rounds=1", "round.cohort=2")
    federation.finish(without)
    unknown = fl_queue(federation, "verify", "not-kept")
    assert (unknown.returncode, "model.keep_updates" in unknown.stdout) == (3, True)
    assert not (Path(federation.redis.state_dir) / "updates" / without).exists()


@pytest.mark.parametrize("role", ["site-1", "aggregator", "evaluator"])
def test_sigterm_of_any_role_loses_nothing(federation: Federation, role: str) -> None:
    calm = federation.digests_of("termed", "round.cohort=2")
    run = federation.begin("termed", "round.cohort=2")
    federation.reach(run, 2)
    federation.processes[role].send_signal(signal.SIGTERM)
    assert federation.processes[role].wait(30) == 0
    federation.start(role)
    state = federation.finish(run)

    assert state.state == "completed"
    assert federation.free(run) == calm
    training = [
        (event["run"], event["round"]) for event in federation.client_events("site-1")
        if event["event"] == "training" and event["run"] == run
    ]  # fmt: skip
    assert len(training) == len(set(training))
