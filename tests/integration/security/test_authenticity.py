"""
What a site receives is the operator's, or is refused: attacks of a process that may write anything to Redis.

The sites are the client worker's own functions with real credentials, on real servers; the operator is the
code of `start-round` and of the aggregator, with a key.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fl_queue.aggregation.group_sum import GroupSum
from fl_queue.cli import cli, worker
from fl_queue.client import revocation, trust
from fl_queue.client.site import WorkerSettings
from fl_queue.common.safe_json import dumps
from fl_queue.config import loading
from fl_queue.coordinator.aggregator.collector import RoundAggregator
from fl_queue.coordinator.aggregator.intake import UpdateIntake
from fl_queue.coordinator.aggregator.version_builder import VersionBuilder
from fl_queue.coordinator.operations import backup, deletion, tagging
from fl_queue.coordinator.rounds import eligibility, lifecycle, runs, statement_signing
from fl_queue.errors import ConfigError, MergeFailed, ModelMismatch, RunStateError
from fl_queue.models.model_store import ModelStore
from fl_queue.protocol import (
    message,
    operator_key,
    signing,
    statements,
    tensor_layout,
    virtual_clients,
)
from fl_queue.protocol.header import Header
from fl_queue.protocol.records import Enrolment
from fl_queue.secure.vault import Vault
from fl_queue.store import RoundState, RunState, Store, credentials, keyspace
from fl_queue.store.credentials import Credentials
from fl_queue.store.jobs import dispatch
from fl_queue.store.jobs.dispatch import JobTicket
from tests.support.backup_files import rewrite_backup
from tests.support.in_process import computed_here  # noqa: F401
from workers import client

QUICK = ("run.rounds=3", "round.cohort=2", "train.epochs=1", "data.train_per_class=[9, 9]")
SITES = ("a", "b")


class Hospital:
    """Two sites with credentials and an operator with a key; each step is a call of the test's."""

    def __init__(
        self,
        store: Store,
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        *overrides: str,
        signed: bool = True,
        ready: bool = True,
    ) -> None:
        self.store, self.folder, self.monkeypatch = store, folder, monkeypatch
        assert store.state_dir is not None
        file = store.state_dir / operator_key.FILE
        if signed:
            self.key = operator_key.create(file)
        self.config = loading.load("mnist-3v7", (*QUICK, *overrides), {})
        for site in SITES:
            self.enroll(site, self.key.public if signed else "")
        self.run = self.begin("authentic", ready)

    def begin(self, name: str, ready: bool = True) -> str:
        """A run with version 0, and round 1 open; not ``ready``: its first job is not done."""
        run = runs.start_run(self.store, name, self.config, 3).run_id
        self.advance(run)
        self.run = run
        if not ready:
            return run
        self.work(self.round.cohort[0], client.initialise)
        self.collect()
        assert self.state.version == 0
        return run

    def enroll(self, site: str, operator: str) -> Path:
        secret, public = signing.new_key()
        pins = self.store.control.enrolments.pins
        made = pins.signed(site, Enrolment(public), self.store.control.enrolments.get(site))
        pins.pin(site, made)
        self.store.control.enrolments.write(site, made)
        self.store.control.leases.hold(keyspace.client_holder(site), "t", 600, {})
        path = self.folder / f"{site}.toml"
        control, data = self.store.servers.url, self.store.servers.blob_url
        handed = Credentials(site, secret, control, data, operator_key=operator)
        credentials.write(path, handed, force=True)
        return path

    @property
    def state(self) -> RunState:
        return runs.find_run(self.store, self.run)

    @property
    def round(self) -> RoundState:
        found = self.store.control.rounds.get(self.run, self.state.round)
        assert found is not None
        return found

    def advance(self, run: str) -> None:
        self.store.control.redis.hset(keyspace.CLOCK, "settling_s", 0)
        lifecycle.advance(self.store, run)

    def collect(self) -> None:
        """The aggregator's job, until the round has ended, and the next round is open."""
        assert self.store.state_dir is not None
        job = self.store.control.rounds.jobs(self.run, self.state.round)["aggregator"]["job"]
        RoundAggregator(self.store, self.run, self.state.round, job, self.store.state_dir).work()
        self.advance(self.run)

    def site(self, who: str, **changes: Any) -> WorkerSettings:
        file = str(self.folder / f"{who}.toml")
        made = WorkerSettings(state_dir=self.folder / who, client=who, credentials=file)
        return replace(made, **changes)

    def work(
        self, who: str, function: Callable[[str, int], str] = client.train, **changes: Any
    ) -> str:
        """A worker does the newest job that a site has of the round."""
        for name, value in self.site(who, **changes).to_environ().items():
            self.monkeypatch.setenv(name, value)
        job = self.store.control.rounds.job(self.run, self.state.round, who).get("job", "")
        self.monkeypatch.setenv("RQ_JOB_ID", job)
        return function(self.run, self.state.round)

    def answers(self) -> dict[str, Header]:
        """Who has sent what for the newest round: headers of the elements that wait."""
        waiting = self.store.data.redis.lrange(keyspace.results(self.run), 0, -1)
        found = {}
        for element in waiting:
            sealed = signing.opened(element)
            assert sealed is not None
            header = message.unpack(sealed.element, max_body_bytes=1 << 30)[0]
            found[header.client] = header
        return found

    def refused(self, who: str) -> list[str]:
        """Reasons for which a site has refused jobs, from its events."""
        streams = {keyspace.client_events(who): "0-0"}
        events = [event for _, _, event in self.store.control.events.read(streams, None)]
        return [event["reason"] for event in events if event["event"] == "job_refused"]

    def unsigned(self) -> list[str]:
        """Reasons for rounds that were opened without a signature, from the run's events."""
        streams = {keyspace.events(self.run): "0-0"}
        events = [event for _, _, event in self.store.control.events.read(streams, None)]
        return [event["reason"] for event in events if event["event"] == "round_unsigned"]

    def write(self, **fields: Any) -> None:
        """Change the open round in Redis, as an attacker would."""
        key = keyspace.round_(self.run, self.state.round)
        self.store.control.redis.hset(key, mapping=fields)


@pytest.fixture
def hospital(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hospital:
    return Hospital(store, tmp_path, monkeypatch)


# Attacks on an open round


def another_model(at: Hospital) -> None:
    manifest = at.store.control.versions.manifest(at.run)
    assert manifest is not None
    body = bytes(manifest.nbytes)
    ModelStore(at.store, at.run, 1 << 20, Path()).publish(tensor_layout.body_digest(body), body)
    at.write(base_digest=tensor_layout.body_digest(body))


def another_config(at: Hospital) -> None:
    segments = at.store.control.runs.config_segments(at.run)
    segments[0]["config"]["train"]["batch_size"] = 1
    at.store.control.redis.set(keyspace.config(at.run), dumps(segments))


def another_segment(at: Hospital) -> None:
    segments = at.store.control.runs.config_segments(at.run)
    segments.append({"from_round": 1, "config": segments[0]["config"]})
    at.store.control.redis.set(keyspace.config(at.run), dumps(segments))
    at.write(segment="1")


def another_manifest(at: Hospital) -> None:
    manifest = json.loads(at.store.control.redis.get(keyspace.manifest(at.run)))
    manifest["private"] = [manifest["tensors"][0]["name"]]
    at.store.control.redis.set(keyspace.manifest(at.run), dumps(manifest))


def another_cohort(at: Hospital) -> None:
    at.write(cohort=dumps(["a", "c"]))


def alone(at: Hospital) -> None:
    at.write(cohort=dumps(["a"]))


def another_share(at: Hospital) -> None:
    at.store.control.redis.hset(keyspace.run(at.run), "population", dumps(["b", "a"]))


def more_shares(at: Hospital) -> None:
    at.store.control.redis.hset(keyspace.run(at.run), "shares", "1000")


def stripped(at: Hospital) -> None:
    at.store.control.redis.hdel(keyspace.round_(at.run, 1), "signed")


def signed_by_a_stranger(at: Hospital) -> None:
    stranger = operator_key.OperatorKey(*signing.new_key())
    statement = statements.opened(at.round.signed, at.key.public)
    assert statement is not None
    at.write(signed=statements.sealed(statement, stranger))


def changed_statement(at: Hospital) -> None:
    whole = json.loads(at.round.signed)
    whole["statement"]["cohort"] = statements.digest_of(["a"])
    at.write(signed=dumps(whole), cohort=dumps(["a"]))


def garbage(at: Hospital) -> None:
    at.write(signed="[" * 5000)


ATTACKS: dict[str, tuple[Callable[[Hospital], None], str]] = {
    "model": (another_model, "base_digest of round 1 is not what the operator signed"),
    "config": (another_config, "config of round 1 is not what the operator signed"),
    "segment": (another_segment, "segment of round 1 is not what the operator signed"),
    "manifest": (another_manifest, "manifest of round 1 is not what the operator signed"),
    "cohort": (another_cohort, "cohort of round 1 is not what the operator signed"),
    "alone": (alone, "cohort of round 1 is not what the operator signed"),
    "share": (another_share, "places of round 1 is not what the operator signed"),
    "shares": (more_shares, "shares of round 1 is not what the operator signed"),
    "stripped": (stripped, f"round 1 is not signed by the operator; {trust.NEEDED}"),
    "stranger": (
        signed_by_a_stranger,
        "round 1 is signed with another key than the operator's, or changed",
    ),
    "statement": (
        changed_statement,
        "round 1 is signed with another key than the operator's, or changed",
    ),
    "garbage": (garbage, "round 1 is signed with another key than the operator's, or changed"),
}


@pytest.mark.parametrize("kind", ATTACKS)
def test_what_the_operator_did_not_sign_is_refused(hospital: Hospital, kind: str) -> None:
    attack, reason = ATTACKS[kind]
    attack(hospital)

    assert hospital.work("a") == "pushed"

    answer = hospital.answers()["a"]
    assert (answer.kind, answer.reason) == ("failure", reason)
    assert hospital.refused("a") == [reason]


def test_a_round_as_the_operator_signed_it_is_trained(hospital: Hospital) -> None:
    assert [hospital.work(site) for site in SITES] == ["pushed", "pushed"]
    assert {who: answer.kind for who, answer in hospital.answers().items()} == dict.fromkeys(
        SITES, "update"
    )
    hospital.collect()
    assert hospital.state.version == 1
    assert hospital.round.signed
    assert [hospital.work(site) for site in SITES] == ["pushed", "pushed"]
    assert [hospital.refused(site) for site in SITES] == [[], []]


def test_signatures_change_no_bit(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def digests(*overrides: str, signed: bool) -> list[str]:
        hospital = Hospital(store, tmp_path, monkeypatch, *overrides, signed=signed)
        while hospital.state.active and hospital.round.purpose == "train":
            for site in SITES:
                hospital.work(site)
            assert bool(hospital.round.signed) == signed
            hospital.collect()
        assert hospital.state.version == 3
        store.control.redis.hdel(keyspace.RUNS, hospital.state.name)
        versions = store.control.versions.all(hospital.run).values()
        assert all(bool(entry.get("signature")) == signed for entry in versions)
        return [entry["digest"] for entry in versions]

    # Only settings by which more than one digest makes a version.
    kept = ("aggregation.strategy=fedadam", "model.codec=bfloat16")
    plain = digests(signed=False), digests(*kept, signed=False)
    assert (digests(signed=True), digests(*kept, signed=True)) == plain


def test_a_refusal_ends_no_round_of_the_others(hospital: Hospital) -> None:
    hospital.store.control.redis.hset(keyspace.round_(hospital.run, 1), "quorum", "1")
    hospital.work("b")
    signed = hospital.round.signed
    stripped(hospital)
    hospital.work("a")
    hospital.write(signed=signed)
    hospital.collect()
    record = hospital.store.control.history.records(hospital.run)[-1]
    assert list(record.accepted) == ["b"]
    assert record.rejected == {
        "a": f"failed: round 1 is not signed by the operator; {trust.NEEDED}"
    }
    # The aggregator knows the model by its own signature: the next round is as good as ever.
    assert hospital.round.number == 2
    assert hospital.work("a") == "pushed"
    assert hospital.answers()["a"].kind == "update"


def test_an_old_round_is_refused_also_after_a_restart(hospital: Hospital) -> None:
    redis, run = hospital.store.control.redis, hospital.run
    keys = [keyspace.round_(run, 1), keyspace.round_jobs(run, 1)]
    old = {key: redis.dump(key) for key in keys}
    for site in SITES:
        hospital.work(site)
    hospital.collect()
    hospital.work("a")
    for key, dumped in old.items():
        redis.restore(key, 0, dumped, replace=True)
    redis.hset(keyspace.run(run), "round", "1")
    redis.delete(keyspace.results(run))
    for path in (hospital.folder / "a" / "outbox").iterdir():
        path.unlink()

    hospital.work("a")

    reason = "round 1 is older than round 2, which this site took part in"
    assert hospital.refused("a") == [reason]


def test_another_attempt_at_the_same_round_is_no_old_round(hospital: Hospital) -> None:
    hospital.work("a")
    for path in (hospital.folder / "a" / "outbox").iterdir():
        path.unlink()
    key = keyspace.round_jobs(hospital.run, 1)
    old = dispatch.tickets(hospital.store, hospital.run, 1)["a"]
    assert dispatch.replace(hospital.store, key, "a", old) is not None
    assert hospital.work("a") == "pushed"
    assert hospital.refused("a") == []


def test_a_round_that_a_failover_has_lost_is_opened_again_and_trained(hospital: Hospital) -> None:
    redis, run = hospital.store.control.redis, hospital.run
    before = redis.dump(keyspace.run(run))
    for site in SITES:
        hospital.work(site)
    hospital.collect()
    hospital.work("a")  # Round 2, of which the server then loses all.
    redis.restore(keyspace.run(run), 0, before, replace=True)
    redis.delete(keyspace.round_(run, 1), keyspace.round_jobs(run, 1), keyspace.round_(run, 2))
    redis.hset(keyspace.run(run), "round", "0")
    redis.delete(keyspace.results(run))
    hospital.advance(run)
    assert hospital.state.round == 1
    assert hospital.work("a") == "pushed"
    assert hospital.refused("a") == []


def test_a_round_of_another_run_is_refused(hospital: Hospital) -> None:
    redis = hospital.store.control.redis
    other, hospital_round = hospital.run, hospital.round.signed
    assert hospital_round
    hospital.begin("second")
    redis.copy(keyspace.round_(other, 1), keyspace.round_(hospital.run, 1), replace=True)
    hospital.work("a")
    (reason,) = hospital.refused("a")
    assert reason in (
        "name of round 1 is not what the operator signed",
        "base_digest of round 1 is not what the operator signed",
    )


def test_a_job_for_another_client_is_refused(hospital: Hospital) -> None:
    hospital.enroll("c", hospital.key.public)
    ticket = JobTicket("c", "workers.client.train", "flq-client-c", hospital.run, 1, 60)
    hospital.store.control.redis.hset(keyspace.round_jobs(hospital.run, 1), "c", ticket.to_json())
    hospital.work("c")
    assert hospital.refused("c") == ["round 1 is signed for other clients"]


@pytest.mark.parametrize("function", [client.evaluate, client.initialise])
def test_another_kind_of_job_is_refused(
    hospital: Hospital, function: Callable[[str, int], str]
) -> None:
    hospital.work("a", function)
    assert hospital.refused("a") == ["round 1 is signed for another job: train"]


def test_the_question_before_round_1_is_of_the_operator_s_config(hospital: Hospital) -> None:
    def report() -> dict[str, str]:
        return json.loads(
            hospital.store.control.clients.site_facts("a", hospital.run, 1 << 16) or "{}"
        )["facts"]

    def ask(run: str, number: int) -> str:
        return client.tell_facts(run, 0)

    hospital.work("a", ask)
    assert "cannot" not in report()
    another_config(hospital)
    hospital.work("a", ask)
    reason = (
        f"the config of run {hospital.run} is not signed with the operator's key, or was changed"
    )
    assert report() == {"problem": reason, "cannot": "yes"}
    assert hospital.refused("a") == [reason]


@pytest.mark.parametrize(
    "changes", [{"shares": "100000"}, {"population": dumps([*"cdefghijkl", "a"]), "shares": "12"}]
)
def test_the_question_before_round_1_is_of_no_share_that_redis_chooses(
    hospital: Hospital, changes: dict[str, str]
) -> None:
    """Else the answer to each share size would disclose the number of a site's rows, one question after the other."""

    def report() -> dict[str, str]:
        hospital.work("a", lambda run, number: client.tell_facts(run, 0))
        return json.loads(
            hospital.store.control.clients.site_facts("a", hospital.run, 1 << 16) or "{}"
        )["facts"]

    honest = report()
    assert "cannot" not in honest
    hospital.store.control.redis.hset(keyspace.run(hospital.run), mapping=changes)
    assert report() == honest


def test_only_deleting_a_run_forgets_that_it_is_signed(hospital: Hospital) -> None:
    redis, run, pins = (
        hospital.store.control.redis,
        hospital.run,
        hospital.store.control.enrolments.pins,
    )
    pins.require(run, True)
    assert hospital.store.state_dir is not None
    # An attacker has it look deleted to every machine of the operator.
    name = redis.hget(keyspace.RUNS, "authentic")
    redis.hdel(keyspace.RUNS, "authentic")
    redis.zadd(keyspace.DELETED, {run: hospital.store.control.now()})
    deletion.sweep_here(hospital.store, hospital.store.state_dir)
    assert (pins.signed_version(run) is not None, pins.required(run, False)) == (True, True)

    redis.hset(keyspace.RUNS, "authentic", name)
    redis.hset(keyspace.run(run), "state", "cancelled")
    deletion.delete(hospital.store, hospital.state, hospital.store.state_dir)
    assert (pins.signed_version(run), pins.required(run, False)) == (None, False)


def test_credentials_without_the_operator_s_key_check_nothing(hospital: Hospital) -> None:
    hospital.enroll("a", "")
    stripped(hospital)
    hospital.work("a")
    assert hospital.answers()["a"].kind == "update"


def test_who_joins_an_open_asynchronous_round_is_signed_for_too(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = (
        "round.mode=async",
        "round.cohort=1.0",
        "round.buffer=2",
        "round.concurrency=1.0",
        "data.shares=3",
    )
    hospital = Hospital(store, tmp_path, monkeypatch, *overrides)
    assert hospital.round.is_async
    assert hospital.work("a") == "pushed"
    hospital.enroll("c", hospital.key.public)
    hospital.advance(hospital.run)
    assert hospital.round.cohort == ("a", "b", "c")

    assert hospital.work("c") == "pushed"
    assert hospital.work("b") == "pushed"

    assert {answer.kind for answer in hospital.answers().values()} == {"update"}
    hospital.collect()
    assert hospital.state.version == 1
    assert hospital.unsigned() == []


def test_who_is_asked_next_for_version_0_is_signed_for_too(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital = Hospital(store, tmp_path, monkeypatch, ready=False)
    (first,) = hospital.round.cohort
    store.control.redis.delete(keyspace.client_holder(first))
    hospital.advance(hospital.run)
    (second,) = set(hospital.round.cohort) - {first}
    assert hospital.work(second, client.initialise) == "pushed"
    assert hospital.answers()[second].kind == "model"


@pytest.mark.parametrize("names_key", [True, False])
def test_credentials_without_the_operator_s_key_are_warned_of_once(
    hospital: Hospital, caplog: pytest.LogCaptureFixture, names_key: bool
) -> None:
    hospital.enroll("a", hospital.key.public if names_key else "")
    revocation.warn_if_unchecked(hospital.site("a"))
    assert ("a.toml has no operator_key" in caplog.text) != names_key


# A site's own consent


def test_a_pin_is_a_digest_or_the_config_that_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = CliRunner().invoke(cli, ["config", "show", "mnist-3v7", "--digest"])
    digest = loading.load("mnist-3v7", (), {}).digest
    assert shown.output == f"{digest}\n"
    found: list[WorkerSettings] = []
    monkeypatch.setattr(worker, "_become_worker", lambda role, site: found.append(site))
    monkeypatch.setenv("FLQ_TRAIN_EPOCHS", "7")  # Of this machine, not of the operator's run.
    line = ["worker", "client", "--client", "a", "--state-dir", str(tmp_path)]
    pins = ["--pin-config", "mnist-3v7", "--pin-config", "0" * 64]
    assert CliRunner().invoke(cli, [*line, *pins]).exception is None
    assert found[0].pins == (digest, "0" * 64)
    assert WorkerSettings.from_environ(found[0].to_environ()).pins == found[0].pins
    wrong = CliRunner().invoke(cli, [*line, "--pin-config", "abc"])
    assert isinstance(wrong.exception, ConfigError)


def test_a_site_serves_only_the_config_it_has_pinned(hospital: Hospital) -> None:
    other = loading.load("mnist-3v7", (*QUICK, "train.batch_size=3"), {}).digest
    hospital.work("a", pins=(other,))
    (reason,) = hospital.refused("a")
    assert reason.startswith(f"config {hospital.config.digest} is none that this site has pinned")
    hospital.work("b", pins=(other, hospital.config.digest))
    assert {who: answer.kind for who, answer in hospital.answers().items()} == {
        "a": "failure",
        "b": "update",
    }


@pytest.mark.parametrize(
    ("function", "purpose", "asked"),
    [
        (client.train, "train", "an update"),
        (client.evaluate, "evaluate", "metrics"),
        (client.sums, "sums", "sums of this site's rows"),
    ],
)
def test_a_site_that_requires_secure_rounds_answers_no_plain_one(
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    function: Callable[[str, int], str],
    purpose: str,
    asked: str,
) -> None:
    # Not signed: that a plain round is the operator's own does not help it.
    hospital = Hospital(store, tmp_path, monkeypatch, signed=False)
    hospital.write(purpose=purpose)
    hospital.work("a", function, require_secure=True)

    (answer,) = hospital.answers().values()
    assert (answer.kind, answer.num_examples, answer.metrics, answer.tensors) == (
        "failure",
        0,
        {},
        (),
    )
    assert answer.reason == (
        f"round 1 asks for {asked} in clear, and this site takes part in secure rounds only (--require-secure)"
    )
    assert answer.environment["cannot"] == "RoundRefused"
    assert answer.environment.keys() <= {"cannot", "inputs"}
    assert hospital.refused("a") == [answer.reason]
    assert not [*(tmp_path / "a").rglob("*.npz"), *(tmp_path / "a/cache").rglob("*")]


@pytest.mark.parametrize(
    ("function", "purpose"), [(client.evaluate, "evaluate"), (client.sums, "sums")]
)
def test_the_fields_of_a_secure_round_do_not_let_another_job_be_answered_in_clear(
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    function: Callable[[str, int], str],
    purpose: str,
) -> None:
    """Neither by a site that has secure rounds only, nor by one that has made keys of this round."""
    hospital = Hospital(store, tmp_path, monkeypatch, signed=False)
    vault = Vault(tmp_path / "b", "b")
    vault.begin(hospital.run)
    vault.enter(hospital.run, 1, bytes(32), 2, False)
    hospital.write(purpose=purpose, stage="keys", secure="{}", parties="{}")

    hospital.work("a", function, require_secure=True)
    hospital.work("b", function)

    found = hospital.answers()
    assert {who: (one.kind, one.num_examples, one.metrics) for who, one in found.items()} == {
        "a": ("failure", 0, {}),
        "b": ("failure", 0, {}),
    }
    assert "secure rounds only" in found["a"].reason
    assert found["b"].reason == "round 1 was a secure one when this site made its keys"


def test_version_zero_is_made_by_a_site_that_requires_secure_rounds(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital = Hospital(store, tmp_path, monkeypatch, signed=False, ready=False)
    maker = hospital.round.cohort[0]

    assert hospital.work(maker, client.initialise, require_secure=True) == "pushed"
    assert hospital.answers()[maker].kind == "model"


# The operator's side does not sign what another party has written


def test_a_config_that_was_changed_in_redis_is_signed_for_no_round(hospital: Hospital) -> None:
    not_opened_yet(hospital)
    another_config(hospital)
    hospital.advance(hospital.run)
    # Nor is it opened without a signature: the run waits, with a reason.
    assert (hospital.state.round, hospital.unsigned()) == (1, [])
    assert hospital.state.reason.startswith("segment 0 of the config is not signed")


def not_opened_yet(hospital: Hospital) -> None:
    """Version 1 is made, and round 2 is not open."""
    for site in SITES:
        hospital.work(site)
    hospital.collect()
    redis, run = hospital.store.control.redis, hospital.run
    redis.delete(keyspace.round_(run, 2), keyspace.round_jobs(run, 2))
    redis.hset(keyspace.run(run), "round", "1")


class Ghost:
    """
    A site that is not enrolled has an update merged: in a config that it has changed meanwhile, in a
    round that it has joined. Before the version is signed, both are restored.
    """

    def __init__(self, at: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at, self.redis = at, at.store.control.redis
        for site in SITES:
            at.work(site)
        (element, *_) = at.store.data.redis.lrange(keyspace.results(at.run), 0, -1)
        sealed = signing.opened(element)
        assert sealed is not None
        header, body = message.unpack(sealed.element, max_body_bytes=1 << 30)
        made_up = message.pack(replace(header, client="ghost", token="f" * 16), body)
        at.store.data.redis.rpush(keyspace.results(at.run), made_up)
        self.config = self.redis.get(keyspace.config(at.run))
        segments = json.loads(self.config)
        segments[0]["config"]["security"]["require_enrolment"] = False
        self.redis.set(keyspace.config(at.run), dumps(segments))
        at.write(cohort=dumps([*SITES, "ghost"]))
        build = VersionBuilder.build_next

        def made_meanwhile(builder: VersionBuilder, *args: Any) -> Any:
            self.restore()
            return build(builder, *args)

        monkeypatch.setattr(VersionBuilder, "build_next", made_meanwhile)

    def restore(self) -> None:
        self.redis.set(keyspace.config(self.at.run), self.config)


def test_a_signed_round_is_merged_by_the_config_it_was_signed_with(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital = Hospital(store, tmp_path, monkeypatch, "security.require_enrolment=true")
    ghost = Ghost(hospital, monkeypatch)
    with pytest.raises(MergeFailed, match="the cohort of round 1 is not what the operator signed"):
        hospital.collect()
    hospital.write(cohort=dumps(SITES))
    with pytest.raises(MergeFailed, match="the config of round 1 is not what the operator signed"):
        hospital.collect()
    assert (hospital.state.version, store.control.receipts.of_round(hospital.run, 1)) == (0, {})
    ghost.restore()
    hospital.collect()
    assert set(store.control.history.records(hospital.run)[-1].accepted) == set(SITES)


def stripped_everywhere(at: Hospital) -> None:
    """The run looks as if it were older than the operator's key."""
    redis, run = at.store.control.redis, at.run
    segments = at.store.control.runs.config_segments(run)
    redis.set(
        keyspace.config(run),
        dumps([{key: found[key] for key in ("from_round", "config")} for found in segments]),
    )
    for number, entry in at.store.control.versions.all(run).items():
        entry.pop("signature", None)
        redis.hset(keyspace.versions(run), str(number), dumps(entry))
    redis.hdel(keyspace.round_(run, at.state.round), "signed")


@pytest.mark.parametrize("is_known", [True, False], ids=["known here", "seen for the first time"])
def test_a_round_whose_signature_was_taken_away_is_not_merged(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_known: bool
) -> None:
    hospital = Hospital(store, tmp_path, monkeypatch, "security.require_enrolment=true")
    Ghost(hospital, monkeypatch)
    signed = hospital.round.signed
    if is_known:
        stripped_everywhere(hospital)
    else:  # Another machine of the operator, which knows by the signed version 0.
        stripped(hospital)
        store.control.enrolments.pins.forget(hospital.run)
    with pytest.raises(MergeFailed, match=r"round 1 is not signed with the operator's key .*, and"):
        hospital.collect()
    assert (hospital.state.version, store.control.receipts.of_round(hospital.run, 1)) == (0, {})
    if not is_known:
        hospital.write(signed=signed, cohort=dumps(SITES))
        another_config_back(hospital)
        hospital.collect()
        assert set(store.control.history.records(hospital.run)[-1].accepted) == set(SITES)
        assert store.control.versions.get(hospital.run, 1)["signature"]


def another_config_back(hospital: Hospital) -> None:
    segments = hospital.store.control.runs.config_segments(hospital.run)
    segments[0]["config"]["security"]["require_enrolment"] = True
    hospital.store.control.redis.set(keyspace.config(hospital.run), dumps(segments))


def test_a_run_that_looks_older_than_the_key_to_a_machine_that_has_never_seen_it(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A remaining gap: such a run cannot be distinguished from an older one. Its version has no signature, and no site goes on with it."""
    hospital = Hospital(store, tmp_path, monkeypatch)
    for site in SITES:
        hospital.work(site)
    stripped_everywhere(hospital)
    store.control.enrolments.pins.forget(hospital.run)
    hospital.collect()
    assert "signature" not in store.control.versions.get(hospital.run, 1)
    assert hospital.unsigned()[0].startswith("segment 0 of the config is not signed")
    hospital.work("a")
    assert hospital.refused("a") == [f"round 2 is not signed by the operator; {trust.NEEDED}"]


def test_who_is_put_into_an_open_asynchronous_round_has_no_update_merged(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = ("round.mode=async", "round.cohort=1.0", "round.buffer=2", "data.shares=3")
    hospital = Hospital(store, tmp_path, monkeypatch, *overrides)
    hospital.work("a")
    look_at = UpdateIntake.process

    def joined(intake: UpdateIntake, element: bytes) -> bool:
        hospital.write(cohort=dumps([*SITES, "c"]))
        return look_at(intake, element)

    monkeypatch.setattr(UpdateIntake, "process", joined)
    hospital.work("b")
    with pytest.raises(MergeFailed, match="the cohort of round 1 is not what the operator signed"):
        hospital.collect()
    assert hospital.state.version == 0


def test_an_older_version_that_was_put_back_is_not_signed_anew(hospital: Hospital) -> None:
    not_opened_yet(hospital)
    redis, run = hospital.store.control.redis, hospital.run
    zero = hospital.store.control.versions.get(run, 0)
    stripped_everywhere(hospital)
    redis.hdel(keyspace.versions(run), "1")
    redis.hset(
        keyspace.run(run),
        mapping={"version": "0", "digest": zero["digest"], "state": "cancelled"},
    )
    with pytest.raises(RunStateError, match="the newest that was signed here is 1, digest "):
        runs.start_run(hospital.store, "authentic", hospital.config, 2)
    assert "signature" not in hospital.store.control.versions.get(run, 0)


@pytest.mark.parametrize("field", ["round", "cohort"])
def test_a_statement_of_something_else_is_not_signed_again(hospital: Hospital, field: str) -> None:
    key, run, current = hospital.key, hospital.run, hospital.round
    statement = statements.opened(current.signed, key.public)
    assert statement is not None
    assert statement_signing.with_cohort(hospital.store, run, current, ["a", "b", "c"]).signed
    other = {"round": 7, "cohort": statements.digest_of(["a"])}[field]
    put = replace(current, signed=statements.sealed({**statement, field: other}, key))
    assert not statement_signing.with_cohort(hospital.store, run, put, ["a", "b", "c"]).signed


def test_a_version_that_was_changed_in_redis_is_signed_for_no_round(hospital: Hospital) -> None:
    not_opened_yet(hospital)
    redis, run = hospital.store.control.redis, hospital.run
    zero, one = (hospital.store.control.versions.get(run, number) for number in (0, 1))
    redis.hset(keyspace.run(run), "digest", zero["digest"])
    hospital.advance(run)
    assert (hospital.state.round, hospital.unsigned()) == (1, [])
    assert "its model is not version 1 as it was signed" in hospital.state.reason

    redis.hset(keyspace.versions(run), "1", dumps(zero))
    hospital.advance(run)
    assert (hospital.state.round, hospital.unsigned()) == (1, [])
    assert "version 1 is not signed" in hospital.state.reason

    redis.hset(keyspace.versions(run), "1", dumps(one))
    redis.hset(keyspace.run(run), "digest", one["digest"])
    hospital.advance(run)
    assert (hospital.state.round, bool(hospital.round.signed)) == (2, True)


def test_no_version_is_made_from_a_model_that_was_changed_meanwhile(hospital: Hospital) -> None:
    manifest = hospital.store.control.versions.manifest(hospital.run)
    assert manifest is not None
    made = {"digest": "0" * 64, "download": "", "server_state": {}}

    def version() -> str:
        used = hospital.config.digest
        return statement_signing.version(
            hospital.store, hospital.run, hospital.round, made, manifest, used
        )

    assert version()
    another_model(hospital)
    with pytest.raises(ModelMismatch, match="its model is not version 0 as it was signed"):
        version()


def test_a_machine_without_the_key_opens_no_round_of_a_signed_run(
    hospital: Hospital, redis_urls: tuple[str, str], tmp_path: Path
) -> None:
    for site in SITES:
        hospital.work(site)
    run = hospital.run
    hospital.store.control.redis.hset(keyspace.run(run), "round", "0")
    hospital.store.control.redis.delete(keyspace.round_(run, 1), keyspace.round_jobs(run, 1))
    with Store.open(*redis_urls, tmp_path / "elsewhere") as keyless:
        lifecycle.advance(keyless, run)
        assert runs.find_run(keyless, run).round == 0
        assert "there is no operator.key in" in runs.find_run(keyless, run).reason
        hospital.advance(run)
        assert hospital.round.signed
        hospital.store.control.redis.hset(keyspace.run(run), "state", "cancelled")
        with pytest.raises(ConfigError, match=r"operator\.key"):
            runs.start_run(keyless, "authentic", hospital.config, 1)


def test_a_machine_without_the_key_does_not_end_a_run_whose_best_version_is_to_be_restored(
    store: Store, redis_urls: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital = Hospital(store, tmp_path, monkeypatch, "run.restore_best=true")
    not_opened_yet(hospital)
    run = hospital.run
    # The clients have validated version 0 alone, which makes it the best one.
    nothing_left = {"rounds_wanted": "1", "evaluated_version": "1"}
    store.control.redis.hset(keyspace.run(run), mapping=nothing_left)
    with Store.open(*redis_urls, tmp_path / "elsewhere") as keyless:
        lifecycle.advance(keyless, run)
        assert (hospital.state.state, hospital.state.version) == ("training", 1)
        assert "there is no operator.key in" in hospital.state.reason
    hospital.advance(run)
    assert (hospital.state.state, hospital.state.version) == ("completed", 2)
    zero, two = (store.control.versions.get(run, number) for number in (0, 2))
    assert (two["digest"], bool(two["signature"])) == (zero["digest"], True)


def test_a_restored_run_is_signed_anew(hospital: Hospital, tmp_path: Path) -> None:
    assert hospital.store.state_dir is not None
    file = tmp_path / "run.flq"
    backup.write(hospital.store, "authentic", file, hospital.store.state_dir)
    made = backup.restore(hospital.store, file, hospital.store.state_dir, "restored")
    hospital.run = made.run_id
    hospital.store.control.redis.hset(keyspace.run(made.run_id), "state", "training")
    hospital.advance(made.run_id)
    assert hospital.round.signed
    hospital.work("a")
    assert hospital.answers()["a"].kind == "update"


def with_tagged_version_0(hospital: Hospital, file: Path) -> Path:
    """Back a run up that is at version 1; returns the state folder."""
    store = hospital.store
    not_opened_yet(hospital)
    store.control.redis.hset(keyspace.run(hospital.run), "state", "cancelled")
    tagging.tag(store, hospital.run, "0", "first")
    assert store.state_dir is not None
    backup.write(store, "authentic", file, store.state_dir)
    return store.state_dir


def test_a_restored_signed_run_can_go_back_to_what_the_backup_has(
    hospital: Hospital, tmp_path: Path
) -> None:
    store, file = hospital.store, tmp_path / "run.flq"
    made = backup.restore(store, file, with_tagged_version_0(hospital, file), "restored")
    assert store.control.enrolments.pins.signed_version(made.run_id) == (1, made.digest)
    runs.start_run(store, "restored", hospital.config, 1, from_version=0)
    hospital.run = made.run_id
    hospital.advance(made.run_id)
    assert (hospital.state.version, bool(hospital.round.signed)) == (2, True)


def test_an_older_version_of_a_backup_is_signed_only_if_it_was(
    hospital: Hospital, tmp_path: Path
) -> None:
    store, file = hospital.store, tmp_path / "run.flq"
    state_dir = with_tagged_version_0(hospital, file)
    rewrite_backup(file, lambda raw: raw["versions"]["0"].pop("signature"))
    for name, unsigned in (("left", False), ("vouched", True)):
        made = backup.restore(store, file, state_dir, name, unsigned)
        assert ("signature" in store.control.versions.get(made.run_id, 0)) == unsigned
        assert store.control.versions.get(made.run_id, 1)["signature"]
    rewrite_backup(file, older_version_of_another)
    with pytest.raises(ConfigError, match="--unsigned: the version 0 in this backup is not signed"):
        backup.restore(store, file, state_dir, "restored")


def older_version_of_another(raw: dict[str, Any]) -> None:
    raw["versions"]["0"]["signature"] = raw["versions"]["1"]["signature"]


def other_config(raw: dict[str, Any]) -> None:
    raw["config"][0]["config"]["train"]["batch_size"] = 11


def other_model(raw: dict[str, Any]) -> None:
    raw["manifest"]["private"] = [raw["manifest"]["tensors"][0]["name"]]


def no_signatures(raw: dict[str, Any]) -> None:
    for entry in (*raw["config"], *raw["versions"].values()):
        entry.pop("signature")


@pytest.mark.parametrize(
    ("change", "what"),
    [(other_config, "config"), (other_model, "version 0"), (no_signatures, "config")],
)
def test_a_backup_that_was_changed_is_not_signed_anew(
    hospital: Hospital, tmp_path: Path, change: Callable[[dict[str, Any]], None], what: str
) -> None:
    """Who can write to the file would else have sites train what the operator never signed."""
    store, file = hospital.store, tmp_path / "run.flq"
    assert store.state_dir is not None
    backup.write(store, "authentic", file, store.state_dir)
    rewrite_backup(file, change)
    with pytest.raises(ConfigError, match=f"--unsigned: the {what} in this backup is not signed"):
        backup.restore(store, file, store.state_dir, "restored")
    assert "restored" not in store.control.runs.names()
    line = [
        "restore",
        str(file),
        "--run",
        "restored",
        "--unsigned",
        "--redis-url",
        store.servers.url,
    ]
    line += ["--blob-url", store.servers.blob_url, "--state-dir", str(store.state_dir)]
    done = CliRunner().invoke(cli, line)
    assert done.exit_code == 0, done.output
    assert "restored" in store.control.runs.names()


def test_a_run_older_than_the_key_is_signed_when_it_is_gone_on_with(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital = Hospital(store, tmp_path, monkeypatch)
    run, redis = hospital.run, store.control.redis
    # As an earlier release would have left it.
    store.control.enrolments.pins.forget(run)
    segments = [
        {key: found[key] for key in ("from_round", "config")}
        for found in store.control.runs.config_segments(run)
    ]
    redis.set(keyspace.config(run), dumps(segments))
    entry = store.control.versions.get(run, 0)
    redis.hset(keyspace.versions(run), "0", dumps({key: entry[key] for key in ("digest", "round")}))
    redis.delete(keyspace.round_(run, 1), keyspace.round_jobs(run, 1))
    redis.hset(keyspace.run(run), mapping={"round": "0", "state": "cancelled"})

    runs.start_run(store, "authentic", hospital.config, 2)
    hospital.advance(run)

    assert hospital.unsigned() == []
    hospital.work("a")
    assert hospital.answers()["a"].kind == "update"


def test_a_sum_of_a_pool_speaks_for_no_site(hospital: Hospital) -> None:
    """A pool's sum has no signatures of its members: a run of sites must not take one."""
    hospital.work("b")
    (waiting,) = hospital.store.data.redis.lrange(keyspace.results(hospital.run), 0, -1)
    sealed = signing.opened(waiting)
    assert sealed is not None
    header, body = message.unpack(sealed.element, max_body_bytes=1 << 30)
    hospital.store.data.redis.delete(keyspace.results(hospital.run))
    manifest = hospital.store.control.versions.manifest(hospital.run)
    assert manifest is not None
    total = GroupSum(manifest, hospital.config, hospital.round)
    for site in hospital.round.cohort:
        total.take(replace(header, client=site, token=f"token of {site}"), body)
    made_up = total.element(replace(header, client=virtual_clients.group(0), token="token of all"))
    hospital.write(groups="1")
    hospital.store.data.redis.rpush(keyspace.results(hospital.run), message.pack(*made_up))

    for site in SITES:
        hospital.work(site)
    hospital.collect()

    record = hospital.store.control.history.records(hospital.run)[-1]
    assert record.accepted.keys() == {"a", "b"}
    assert record.accepted["a"] != record.accepted["b"]  # Both have trained themselves.


# The operator's key of a machine


@pytest.fixture
def elsewhere(hospital: Hospital, tmp_path: Path) -> tuple[list[str], Path]:
    """Options of another machine of the operator, and the key there that is not in its state folder."""
    folder, key = tmp_path / "elsewhere", tmp_path / "safe.key"
    folder.mkdir(mode=0o700)
    assert hospital.store.state_dir is not None
    key.write_bytes((hospital.store.state_dir / operator_key.FILE).read_bytes())
    key.chmod(0o600)
    servers = hospital.store.servers
    options = ["--state-dir", str(folder), "--redis-url", servers.url]
    return [*options, "--blob-url", servers.blob_url], key


def test_a_key_that_is_named_signs_and_is_handed_on_without_the_environment(
    hospital: Hospital, elsewhere: tuple[list[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    options, key = elsewhere
    monkeypatch.delenv(operator_key.VARIABLE, raising=False)
    named = [*options, "--operator-key", str(key)]
    begun = CliRunner().invoke(cli, ["start-round", "mnist-3v7", "--no-wait", "--run", "n", *named])
    assert begun.exception is None, begun.output
    run, public = begun.stdout.split()[0], hospital.key.public
    (segment,) = hospital.store.control.runs.config_segments(run)
    assert statements.is_segment_signed(run, "n", 0, segment, public)

    found: list[WorkerSettings] = []
    monkeypatch.setattr(worker, "_become_worker", lambda role, site: found.append(site))
    assert CliRunner().invoke(cli, ["worker", "aggregator", *named]).exception is None
    again = WorkerSettings.from_environ(found[0].to_environ())
    assert again.operator_key == str(key)
    with again.connect() as store:
        assert store.control.enrolments.pins.key == hospital.key
    # A caller of a command in its own process keeps its environment.
    assert operator_key.VARIABLE not in os.environ


def test_the_doctor_reports_that_the_key_is_missing_or_another_one(
    hospital: Hospital, elsewhere: tuple[list[str], Path]
) -> None:
    options, key = elsewhere

    def lines(*further: str) -> list[str]:
        output = CliRunner().invoke(cli, ["doctor", *options, *further]).stdout.splitlines()
        return [line for line in output if "the operator's key" in line]

    assert lines("--operator-key", str(key)) == [
        f"OK    the operator's key is {hospital.key.fingerprint}"
    ]
    (missing,) = lines()
    assert missing.startswith("WARN  the operator's key: run authentic is signed, and ")
    key.unlink()
    other = operator_key.create(key)
    foreign = lines("--operator-key", str(key))[0]
    assert foreign.startswith(
        f"FAIL  the operator's key: run authentic is signed with another key than {other.fingerprint}"
    )


def test_credentials_are_not_written_where_others_can_exchange_them(
    hospital: Hospital, elsewhere: tuple[list[str], Path], tmp_path: Path
) -> None:
    options, key = elsewhere
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o777)
    command = ["enroll", "c", "--no-acl", "--open-server", "--operator-key", str(key), *options]
    before = hospital.store.control.enrolments.entries()
    refused = CliRunner().invoke(cli, [*command, "-o", str(folder / "c.toml")])
    assert isinstance(refused.exception, ConfigError)
    assert "others of this machine may write to" in str(refused.exception)
    assert (list(folder.iterdir()), hospital.store.control.enrolments.entries()) == ([], before)

    folder.chmod(0o1777)  # As /tmp: each may replace their own files only.
    assert CliRunner().invoke(cli, [*command, "-o", str(folder / "c.toml")]).exception is None


@pytest.mark.parametrize("name", ["sim-1", "group-0"])
def test_a_worker_with_a_name_of_simulations_is_not_taken_where_others_are_enrolled(
    hospital: Hospital, name: str
) -> None:
    control = hospital.store.control
    out = eligibility.not_admitted(
        hospital.store, hospital.state, hospital.config, ["a", name, "z"]
    )
    assert out == {name: "it has a name of simulations, which cannot be enrolled"}
    control.redis.delete(keyspace.ENROLLED)
    for file in (hospital.store.state_dir or Path()).glob("enrolled/*.json"):
        file.unlink()
    assert eligibility.not_admitted(hospital.store, hospital.state, hospital.config, [name]) == {}
