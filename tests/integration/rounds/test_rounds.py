"""Whole runs with real Redis and real worker processes, calm and disturbed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from fl_queue.cli.redis import redis_cli_command
from fl_queue.coordinator.operations import controls, verification
from fl_queue.models import selection
from fl_queue.protocol import message
from fl_queue.protocol.header import Header
from fl_queue.store import keyspace
from fl_queue.store.embedded.server_pair import EmbeddedRedis
from tests.support.checkout import ROOT
from tests.support.federation import Federation, child_of, kill, wait_for
from tests.support.key_rows import rows_of

CLIENTS = 3
FORKED = True


@pytest.fixture(scope="module")
def calm(federation: Federation) -> list[str]:
    """Digests of an undisturbed run named `same`, whose name the disturbed ones take."""
    return federation.digests_of("same")


def test_a_run_commits_every_round_once_and_records_what_decided_it(
    federation: Federation, calm: list[str]
) -> None:
    run = federation.begin("whole")
    state = federation.finish(run)

    assert (state.state, state.version) == ("completed", 3)
    history = federation.store.control.history.records(run)
    assert [record.outcome for record in history] == ["committed"] * 3 + ["evaluated"]
    for record in history[:3]:
        assert sorted(record.accepted) == record.cohort == federation.clients
        assert (
            record.digest
            == federation.store.control.versions.all(run)[record.version or 0]["digest"]
        )
    receipts = federation.store.control.receipts.of_round(run, 3)
    assert {receipt.status for receipt in receipts.values()} == {"accepted"}
    assert all(receipt.environment["torch"] for receipt in receipts.values())
    assert history[3].validation["num_examples"] > 0


def test_every_key_of_a_federation_has_one_row_in_the_table_and_its_type(
    federation: Federation, calm: list[str]
) -> None:
    run = federation.begin("keys")
    seen: dict[str, str] = {}
    store = federation.store
    while store.control.runs.get(run).state == "training":  # type: ignore[union-attr]
        for client in (store.control.redis, store.data.redis):
            for key in client.scan_iter(match="flq:*"):
                if (kind := client.type(key)) != b"none":  # Removed meanwhile.
                    seen[key.decode()] = kind.decode()
        time.sleep(0.05)

    rows = {key: rows_of(key) for key in seen if not key.startswith("flq:probe:")}
    assert {key: [row.kind for row in found] for key, found in rows.items()} == {
        key: [seen[key]] for key in rows
    }
    met = {row.pattern for found in rows.values() for row in found}
    # Keys that live for the whole run; others may be there between two looks.
    assert {"flq:runs", "flq:{<run>}", "flq:{<run>}:round:<n>:jobs"} <= met
    assert len(met) > 20


def test_the_evaluator_scores_every_version(federation: Federation, calm: list[str]) -> None:
    run = federation.begin("scored")
    federation.finish(run)

    def scored() -> dict[int, dict[str, float]]:
        found = selection.test_metrics(federation.store, run)
        return found if sorted(found) == [0, 1, 2, 3] else {}

    found = wait_for("evaluations", scored)
    assert found[3]["accuracy"] > 0.8 > found[0]["accuracy"]


def test_a_run_that_trains_refuses_a_second_start(federation: Federation, calm: list[str]) -> None:
    run = federation.begin("busy", "round.cohort=9")  # There are three: it waits.
    command = [sys.executable, "-m", "fl_queue", "start-round", "mnist-3v7", "--run", "busy"]
    done = subprocess.run(
        [*command, "--state-dir", str(federation.redis.state_dir)], capture_output=True, text=True
    )

    assert done.returncode == 2
    assert "is training" in done.stderr
    assert "Traceback" not in done.stderr
    controls.cancel(federation.store, "busy")
    assert federation.finish(run).state == "cancelled"


def test_starting_again_continues_from_the_newest_version(
    federation: Federation, calm: list[str]
) -> None:
    run = federation.begin("again", "run.rounds=1")
    federation.finish(run)
    same = federation.begin("again", "run.rounds=2")
    state = federation.finish(same)

    assert same == run
    assert state.version == 3


@pytest.mark.parametrize(
    "victim", ["trainer", "fork server", "client", "client supervisor", "aggregator", "evaluator"]
)
def test_a_killed_process_changes_no_bit(
    federation: Federation, calm: list[str], victim: str
) -> None:
    run = federation.begin("same")
    federation.reach(run, 2)
    if victim == "trainer":
        kill(wait_for("a training process", lambda: federation.trainers("site-1"))[0])
    elif victim == "fork server":
        kill(child_of(federation.worker_pid("site-1")))
    elif victim == "client supervisor":
        federation.processes["site-2"].kill()
        federation.processes["site-2"].wait()
        federation.start("site-2")
    else:
        kill(federation.worker_pid("site-3" if victim == "client" else victim))
    state = federation.finish(run)
    digests = federation.free(run)

    assert state.state == "completed"
    assert digests == calm
    history = federation.store.control.history.records(run)
    assert [record.round for record in history] == sorted({record.round for record in history})


def test_a_killed_redis_of_either_role_changes_no_bit(
    federation: Federation, calm: list[str]
) -> None:
    run = federation.begin("same")
    federation.reach(run, 1)
    for role in ("data", "control"):
        federation.redis.kill(role)
        time.sleep(0.5)
        federation.redis.restart(role)
    state = federation.finish(run, 150)
    digests = federation.free(run)

    assert state.state == "completed"
    assert digests == calm


def test_malformed_foreign_and_duplicate_updates_are_recorded_and_never_merged(
    federation: Federation, calm: list[str]
) -> None:
    run = federation.begin("same", "train.epochs=2")
    data = federation.store.data
    federation.reach(run, 1)
    current = federation.store.control.rounds.get(run, 1)
    assert current is not None
    stranger = Header(
        kind="update",
        run=run,
        round=1,
        client="stranger",
        base_version=0,
        base_digest=current.base_digest,
        token="a" * 16,
        num_examples=5,
    )
    data.results.push(run, b"rubbish")
    data.results.push(run, message.pack(stranger, None))
    data.results.push(
        run, message.pack(replace(stranger, client="site-1", base_digest="0" * 64), None)
    )
    state = federation.finish(run)
    digests = federation.free(run)
    record = federation.committed(run)[0]

    assert state.state == "completed"
    assert digests == calm
    assert "stranger" not in record.accepted
    events = [
        event
        for _, _, event in federation.store.control.events.read({keyspace.events(run): "0-0"}, None)
    ]
    reasons = [event["reason"] for event in events if event["event"] == "update_rejected"]
    assert any("rubbish" in reason or "few" in reason or "begin" in reason for reason in reasons)
    assert any("not in the cohort" in reason for reason in reasons)


def test_a_bad_element_in_a_clients_name_does_not_end_its_round(
    federation: Federation, calm: list[str]
) -> None:
    slow = ("train.epochs=60", "run.rounds=1")
    digests = federation.digests_of("slow", *slow)
    run = federation.begin("slow", *slow)
    wait_for("training", lambda: federation.trained(run) == 3)
    stale = Header(kind="update", run=run, round=1, client="site-1", base_digest="0" * 64, token="a" * 16, num_examples=5)  # fmt: skip
    federation.store.data.results.push(run, message.pack(stale, None))
    wait_for("its receipt", lambda: federation.store.control.receipts.of_round(run, 1))
    state = federation.finish(run)

    assert (state.state, federation.free(run)) == ("completed", digests)
    assert federation.committed(run) != []


def test_a_round_without_its_quorum_is_abandoned_with_the_reason(
    federation: Federation, calm: list[str]
) -> None:
    run = federation.begin(
        "hopeless", "run.task=absent:Allows", "run.rounds=1", "round.deadline_s=5"
    )
    state = federation.finish(run)

    assert state.state == "failed"
    assert state.reason.startswith("no client could make version 0; evaluator: ")
    # All clients were asked, and each one's own reason is there.
    assert state.reason.count("--task-allow absent:Allows") == 1 + len(federation.clients)
    receipts = federation.store.control.receipts.of_round(run, state.round)
    assert any("--task-allow absent:Allows" in receipt.reason for receipt in receipts.values())


def test_a_second_worker_of_a_client_is_refused_with_the_name_of_the_holder(
    federation: Federation, calm: list[str]
) -> None:
    command = [sys.executable, "-m", "fl_queue", "worker", "client", "--client", "site-1"]
    done = subprocess.run(
        [*command, "--state-dir", str(federation.redis.state_dir)],
        capture_output=True,
        text=True,
        timeout=90,
    )

    assert done.returncode == 2
    assert "is served by another worker (site-1_" in done.stderr


def test_nothing_is_left_on_the_data_server_but_models(
    federation: Federation, calm: list[str]
) -> None:
    run = federation.begin("tidy")
    federation.finish(run)

    def leftovers() -> bool:
        keys = federation.store.data.redis.keys(f"flq:{{{run}}}:*")
        return not [key for key in keys if b":owner:" not in key]

    assert wait_for("an empty results list", leftovers, 20)


def test_private_servers_are_found_by_their_state_folder(private_redis: EmbeddedRedis) -> None:
    command = [sys.executable, "-m", "fl_queue", "status", "--json"]
    done = subprocess.run(
        [*command, "--state-dir", str(private_redis.state_dir)], capture_output=True, text=True
    )

    assert (done.returncode, done.stdout.strip()) == (0, "[]")


def test_a_rule_that_needs_all_updates_has_the_same_bits_after_kills_and_can_be_verified(
    federation: Federation,
) -> None:
    settings = ("aggregation.weighting=uniform", "run.evaluate_every=0", "run.rounds=2")
    median = (*settings, "aggregation.strategy=median", "redis.inline_bytes=0")
    calm = federation.digests_of("robust", *median)

    run = federation.begin("robust", *median, "model.keep_updates=true")
    fired = [federation.arm(point, "kill") for point in ("update.received", "model.published")]
    state = federation.finish(run)

    assert [path.exists() for path in fired] == [True, True]
    assert federation.free(run) == calm
    state_dir = federation.redis.state_dir
    assert list((state_dir / "gathered").iterdir()) == []
    verdicts = verification.verify(federation.store, state, state_dir)
    assert [verdict.result for verdict in verdicts] == ["same"] * 2

    krum = (*settings, "aggregation.strategy=krum", "strategy.f=0")
    chosen = federation.begin("robust", *krum, "run.rounds=1", "model.keep_updates=true")
    state = federation.finish(chosen)
    assert federation.free(chosen)[1] != calm[1]
    (record,) = federation.committed(chosen)
    assert len(set(record.accepted) - set(record.left_out)) == 1
    (verdict,) = verification.verify(federation.store, state, state_dir)
    assert verdict.result == "same"


def test_the_cookbook_shows_what_redis_answers(federation: Federation, calm: list[str]) -> None:
    if shutil.which("redis-cli") is None:
        pytest.skip("no redis-cli on PATH")
    run = federation.begin("cooked")
    federation.finish(run)
    wait_for("version 0", lambda: 0 in selection.test_metrics(federation.store, run))
    environment = {"PATH": os.environ["PATH"]}
    environment["CONTROL"] = redis_cli_command(federation.redis.url)
    environment["DATA"] = redis_cli_command(federation.redis.blob_url)
    text = (ROOT / "docs/guides/cookbook.md").read_text()
    for stands_for, name in (("demo-3f2a9c", run), ("demo", "cooked"), ("hospital-a", "site-1")):
        text = text.replace(stands_for, name)
    blocks = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    recipes = [part for block in blocks for part in f"\n{block}".split("\n$ ")[1:]]

    assert len(recipes) > 25
    for recipe in recipes:
        line, _, answer = recipe.partition("\n")
        done = subprocess.run(
            ["bash", "-c", line], env=environment, capture_output=True, text=True, timeout=30
        )
        assert (done.returncode, done.stderr) == (0, ""), line
        assert "ERR " not in done.stdout, line
        assert done.stdout.strip() or line.endswith("# may be empty"), line
        # `...` stands for anything, lines included.
        pattern = re.escape(answer.strip("\n.")).replace(r"\.\.\.", "(?s:.*)")
        assert re.search(pattern, done.stdout), (line, done.stdout)
