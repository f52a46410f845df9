"""Runs that go back to an older version: recorded, verified, backed up; decided once whatever is killed."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fl_queue.cli import cli
from fl_queue.config import loading
from fl_queue.coordinator.operations import backup, controls, tagging, verification
from fl_queue.coordinator.rounds import branching, lifecycle, runs, stopping
from fl_queue.errors import RunStateError, UnknownRun, UnknownVersion
from fl_queue.experiments import launching
from fl_queue.models import retention
from fl_queue.models.model_store import ModelStore
from fl_queue.protocol.header import Header
from fl_queue.protocol.records import Outcome, Purpose
from fl_queue.reporting import diagnosis, rounds_table
from fl_queue.store import Store, keyspace
from fl_queue.store.transactions import branches
from fl_queue.strategies.layouts import state_manifest
from fl_queue.web import view_model
from tests.support.backup_files import without_entries
from tests.support.manual_run import ManualRun
from tests.support.recorded_rounds import add_rounds, record, sums


class Judged(ManualRun):
    """Clients report so many hits of ten on each base version."""

    hits = (5, 9, 7, 6, 6, 6)

    def header(self, kind: str, client: str, body: bytes, token: str = "") -> Header:
        made = super().header(kind, client, body, token)
        right = self.hits[self.round.base_version]
        changed = replace(made, metrics=sums(right, 10 - right))
        return (
            replace(changed, tensors=(), metrics=changed.metrics)
            if kind == "evaluation"
            else changed
        )

    def commit(self) -> None:
        """One round of training."""
        for client in self.clients:
            self.update(client)
        self.work()

    def evaluate(self) -> None:
        """The closing evaluation."""
        assert self.round.purpose == Purpose.evaluate
        for client in self.clients:
            assert self.send(self.header("evaluation", client, b""), b"")
        self.work()

    def go_back(self, version: int, rounds: int = 1) -> None:
        runs.start_run(self.store, self.state.name, self.config, rounds, from_version=version)
        self.advance()

    def digests(self) -> list[str]:
        return [entry["digest"] for entry in self.store.control.versions.all(self.run).values()]


def at_version_2(store: Store, folder: Path, *overrides: str) -> Judged:
    """A run that was cancelled at version 2."""
    hand = Judged(store, folder, "ab", 4, "model.keep_updates=true", *overrides)
    hand.commit()
    hand.commit()
    controls.cancel(store, hand.run)
    return hand


def test_a_run_goes_on_from_an_older_version_under_a_new_number(
    store: Store, tmp_path: Path
) -> None:
    hand = at_version_2(store, tmp_path)
    ended = hand.state.round
    hand.go_back(1)

    assert (hand.state.version, hand.state.rounds_wanted) == (3, 4)
    assert (hand.round.number, hand.round.base_version) == (ended + 2, 3)
    assert hand.round.base_digest == hand.digests()[1]
    hand.commit()
    digests = hand.digests()
    assert digests[3] == digests[1]
    assert len(set(digests)) == 4
    back, last = store.control.history.records(hand.run)[-2:]
    assert (back.purpose, back.outcome) == (Purpose.restore, Outcome.restored)
    assert (back.base_version, back.version, back.digest) == (1, 3, digests[1])
    assert (last.base_version, last.base_digest, last.version) == (3, digests[1], 4)
    row = next(row for row in rounds_table.rounds_of(store, hand.run) if row.outcome == "restored")
    assert (row.version, row.reason) == (3, "goes on from version 1")
    branch = ("Branch", "version 3 is version 1 again (goes on from version 1)")
    assert view_model.history(store, hand.run)["facts"] == [branch]
    found = {v.version: v.result for v in verification.verify(store, hand.state, tmp_path)}
    assert found == dict.fromkeys((1, 2, 3, 4), "same")
    streams = {keyspace.events(hand.run): "0-0"}
    events = [event for _, _, event in store.control.events.read(streams, None)]
    (event,) = (event for event in events if event["event"] == "round_restored")
    assert (event["version"], event["of"]) == (3, 1)


def test_verify_finds_a_version_that_is_not_the_one_it_was_made_from(
    store: Store, tmp_path: Path
) -> None:
    hand = at_version_2(store, tmp_path)
    hand.go_back(1)
    entry = store.control.redis.hget(keyspace.versions(hand.run), "2")
    store.control.redis.hset(keyspace.versions(hand.run), "1", entry)
    verdicts = verification.verify(store, hand.state, tmp_path, hand.round.number - 1)
    (verdict,) = verdicts
    assert verdict.result == "different"
    assert "not version 1" in verdict.reason


@pytest.mark.parametrize(
    ("overrides", "keeps"),
    [
        (("aggregation.strategy=fedadam",), "server"),
        (("aggregation.strategy=scaffold", "aggregation.weighting=uniform"), "zero"),
        (("aggregation.strategy=feddyn", "aggregation.weighting=uniform"), "zero"),
        (('model.private=["w"]',), "private"),
        ((), ""),
    ],
)
def test_what_clients_and_the_server_keep_is_that_of_the_older_version(
    store: Store, tmp_path: Path, overrides: tuple[str, ...], keeps: str
) -> None:
    hand = Judged(store, tmp_path, "ab", 4)
    state, run = hand.state, hand.run
    config = loading.load("mnist-3v7", ("round.cohort=2", *overrides), {})
    if keeps == "private":
        manifest = replace(hand.manifest, private=("w",))
        store.control.redis.set(keyspace.manifest(run), manifest.to_json())
    digest = hand_made_history(hand)
    kept = {"momentum": "ab" * 32}
    old: dict[str, Any] = {"digest": digest, "round": 1, "server_state": kept, "population": 2}
    store.control.redis.hset(keyspace.versions(run), "1", runs.dumps(old))
    store.control.redis.hset(keyspace.accepted(run), "a:backup", "kept")
    found = branching.branch(store, replace(state, version=2, round=2), config, 1, "why")

    assert found.fields["server_state"] == ({} if keeps == "zero" else kept)
    assert found.entry.get("population") == (None if keeps == "zero" else 2)
    assert found.fields.get("state_since") == ("3" if keeps == "zero" else None)
    # Round 2 was a's, round 1 that of both: a's state of round 2 has no part in version 1.
    expected = {"a": (1, "a1"), "b": (1, "b1")} if keeps in ("zero", "private") else {}
    assert found.accepted == expected
    if keeps == "zero":
        zero = branching.branch(store, replace(state, version=2, round=2), config, 0, "why")
        assert (dict(zero.accepted), zero.forgotten) == ({}, ["a", "b"])


def hand_made_history(hand: Judged) -> str:
    """Two rounds, the second of one client alone; returns the digest of version 1."""
    digests = ["1" * 64, "2" * 64]
    add_rounds(
        hand.store,
        hand.run,
        record(1, 0, accepted={"a": "a1", "b": "b1"}, digest=digests[0]),
        record(2, 1, accepted={"a": "a2"}, digest=digests[1]),
    )
    return digests[0]


def test_a_second_branch_starts_from_the_line_it_was_made_of(store: Store, tmp_path: Path) -> None:
    hand = at_version_2(store, tmp_path)
    hand.go_back(0, rounds=2)  # Version 3.
    hand.commit()  # Version 4.
    controls.cancel(store, hand.run)
    hand.go_back(2)
    digests = hand.digests()
    assert (digests[3], digests[5]) == (digests[0], digests[2])
    history = store.control.history.records(hand.run)
    newest = {
        version: sorted(branching.job_origins.newest_accepted(history, version).values())
        for version in (3, 4, 5)
    }
    assert newest[3] == []
    assert {number for number, _ in newest[4]} == {5}
    assert {number for number, _ in newest[5]} == {2}


def test_only_what_is_there_can_be_gone_back_to(store: Store, tmp_path: Path) -> None:
    hand = at_version_2(store, tmp_path)
    with pytest.raises(UnknownVersion, match=r"version 7 does not exist \(versions: 0 to 2\)"):
        hand.go_back(7)
    with pytest.raises(UnknownRun):
        runs.start_run(store, "other", hand.config, 1, from_version=0)
    hand.go_back(2)  # The newest one: nothing is recorded.
    assert hand.state.version == 2
    with pytest.raises(RunStateError, match="is training"):
        hand.go_back(1)
    controls.cancel(store, hand.run)
    models = ModelStore(store, hand.run, hand.config.redis.chunk_bytes, tmp_path)
    models.drop(hand.digests()[1], hand.manifest.nbytes)
    (tmp_path / "checkpoints" / hand.run / f"{hand.digests()[1]}.safetensors").unlink()
    with pytest.raises(UnknownVersion, match=r"pruned \(model.keep_versions\).*--state-dir"):
        launching.check_there(store, hand.state, 1)
    launching.check_there(store, hand.state, 2)


def test_of_two_commands_one_goes_back(store: Store, tmp_path: Path) -> None:
    hand = at_version_2(store, tmp_path)
    outcomes: list[str] = []

    def start() -> None:
        try:
            runs.start_run(store, hand.state.name, hand.config, 1, from_version=1)
            outcomes.append("started")
        except RunStateError:
            outcomes.append("refused")

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["refused"] * 3 + ["started"]
    assert hand.state.version == 3
    outcomes_of = [record.outcome for record in store.control.history.records(hand.run)]
    assert outcomes_of.count(Outcome.restored) == 1


def test_what_was_gone_back_to_is_not_pruned(store: Store, tmp_path: Path) -> None:
    hand = at_version_2(store, tmp_path, "model.keep_versions=1")
    hand.go_back(1)
    models = ModelStore(store, hand.run, hand.config.redis.chunk_bytes, tmp_path)
    retention.prune_versions(models, hand.config)
    assert (tmp_path / "checkpoints" / hand.run / f"{hand.digests()[1]}.safetensors").exists()
    assert models.is_there(3)
    hand.commit()


def test_a_backup_has_both_lines_and_goes_on(store: Store, tmp_path: Path) -> None:
    hand = at_version_2(store, tmp_path)
    hand.go_back(1, rounds=2)
    hand.commit()
    controls.cancel(store, hand.run)
    digests, history = hand.digests(), store.control.history.records(hand.run)
    backup.write(store, hand.run, tmp_path / "b.tar", tmp_path)
    store.control.redis.flushall()
    store.data.redis.flushall()
    state = backup.restore(store, tmp_path / "b.tar", tmp_path / "new")
    entries = store.control.versions.all(state.run_id)
    assert [entry["digest"] for entry in entries.values()] == digests
    assert entries[3]["of"] == 1
    assert store.control.history.records(state.run_id) == history


@pytest.mark.parametrize("is_older", [False, True])
def test_a_restored_run_goes_on_from_a_tagged_version_with_its_strategys_state(
    store: Store, tmp_path: Path, is_older: bool
) -> None:
    hand = at_version_2(store, tmp_path, "aggregation.strategy=fedadam")
    file, state_dir = tmp_path / "b.flq", tmp_path / "new"
    tagging.tag(store, hand.run, "1", "paper")
    states = store.control.versions.get(hand.run, 1)["server_state"]
    backup.write(store, hand.run, file, tmp_path)
    if is_older:
        without_entries(file, [f"{digest}.safetensors" for digest in states.values()])
    store.control.redis.flushall()
    store.data.redis.flushall()
    hand.run, hand.folder = backup.restore(store, file, state_dir).run_id, state_dir
    models = ModelStore(store, hand.run, hand.config.redis.chunk_bytes, state_dir)
    assert models.is_there(1, with_state=False)
    assert models.is_there(1) == (not is_older)
    if is_older:
        return
    for client in hand.clients:
        store.control.leases.hold(keyspace.client_holder(client), "t", 60, {})
    store.control.redis.hset(keyspace.CLOCK, "settling_s", 0)
    hand.go_back(1)
    hand.commit()
    assert hand.state.version == 4
    assert store.control.versions.get(hand.run, 3)["server_state"] == states


def finished(store: Store, folder: Path, *overrides: str) -> Judged:
    """A run that trains until it has no more to do."""
    hand = Judged(store, folder, "ab", 4, *overrides)
    for _ in range(8):
        if not hand.state.active:
            break
        if hand.round.purpose == Purpose.evaluate:
            hand.evaluate()
        else:
            hand.commit()
    return hand


def test_a_run_ends_with_its_best_version_as_the_newest(store: Store, tmp_path: Path) -> None:
    hand = finished(store, tmp_path, "run.restore_best=true")
    assert (hand.state.state, hand.state.version) == ("completed", 3)
    digests = hand.digests()
    assert digests[3] == digests[1]  # 9 of 10 hits, as reported in round 2.
    assert store.control.history.records(hand.run)[-1].reason == (
        "run.restore_best: version 1 is the best one"
    )
    hand.advance()
    assert hand.state.version == 3
    # Continued, it trains from there.
    runs.start_run(store, hand.state.name, hand.config, 1)
    hand.advance()
    assert (hand.round.base_version, hand.round.base_digest) == (3, digests[1])


def test_a_run_out_of_patience_ends_and_continued_counts_anew(store: Store, tmp_path: Path) -> None:
    hand = Judged(store, tmp_path, "ab", 4, "run.patience=1", "run.restore_best=true")
    store.control.redis.hset(keyspace.run(hand.run), "rounds_wanted", "6")
    for _ in range(3):  # Versions 0, 1 and 2 are judged: 1 is the best, and 2 is worse.
        hand.commit()
    assert hand.round.purpose == Purpose.evaluate
    hand.evaluate()
    state = hand.state
    assert (state.state, state.version, state.rounds_wanted) == ("completed", 4, 4)
    assert state.reason == "no version has been better than 1 by accuracy for 1 version"
    assert hand.digests()[4] == hand.digests()[1]
    runs.start_run(store, state.name, hand.config, 1)
    hand.advance()
    assert hand.state.active
    assert hand.state.counted_from == 4


def test_a_best_version_is_restored_once_by_processes_that_race(
    store: Store, tmp_path: Path
) -> None:
    hand = finished(store, tmp_path)
    config = replace(hand.config, run=replace(hand.config.run, restore_best=True))
    key = keyspace.run(hand.run)
    store.control.redis.hset(key, "state", "training")
    seen = hand.state
    found = branching.branch(store, seen, config, 1, "why")
    assert stopping.restore_best(store, seen, config)
    # A process that decided before it was killed, or paused, changes nothing more.
    assert not branches.restore_at_end(store, seen, found)
    assert not stopping.restore_best(store, hand.state, config)
    assert hand.state.version == 3
    records = store.control.history.records(hand.run)
    assert [record.outcome for record in records].count(Outcome.restored) == 1


def before_the_end(store: Store, folder: Path, *overrides: str) -> Judged:
    """A run with ``run.restore_best`` and version 2, whose closing evaluation is open; version 1 is the best."""
    hand = Judged(store, folder, "ab", 4, "run.restore_best=true", *overrides)
    hand.commit()
    hand.commit()
    return hand


def lose(hand: Judged, *digests: str) -> None:
    """Remove content from the disk and from the data server."""
    models = ModelStore(hand.store, hand.run, hand.config.redis.chunk_bytes, hand.folder)
    for digest in digests:
        models.drop(digest, hand.manifest.nbytes)
        (models.folder / f"{digest}.safetensors").unlink()


@pytest.mark.parametrize("what", ["model", "state"])
def test_a_best_version_whose_content_is_gone_does_not_become_the_newest(
    store: Store, tmp_path: Path, what: str
) -> None:
    hand = before_the_end(store, tmp_path, "aggregation.strategy=fedadam")
    states = store.control.versions.get(hand.run, 1)["server_state"]
    lose(hand, *([hand.digests()[1]] if what == "model" else states.values()))
    hand.evaluate()
    assert (hand.state.state, hand.state.version) == ("completed", 2)
    assert "version 1 is the best one (run.restore_best), and its content is gone" in (
        hand.state.reason
    )
    # It can be continued.
    runs.start_run(store, hand.state.name, hand.config, 1)
    hand.advance()
    hand.commit()
    assert hand.state.version == 3


def test_a_best_version_is_on_the_data_server_before_it_is_the_newest(
    store: Store, tmp_path: Path
) -> None:
    hand = before_the_end(store, tmp_path, "aggregation.strategy=fedadam", "model.codec=bfloat16")
    models = ModelStore(store, hand.run, hand.config.redis.chunk_bytes, tmp_path)
    store.data.redis.delete(*store.data.redis.keys("flq:chunk:*"))
    entry = store.control.versions.get(hand.run, 1)
    assert len(entry["server_state"]) == 2
    hand.evaluate()
    assert (hand.state.state, hand.state.version) == ("completed", 3)
    assert bytes(models.fetch(entry["digest"], hand.manifest))
    for digest in entry["server_state"].values():
        assert bytes(models.fetch(digest, state_manifest(hand.manifest)))
    assert not models.restore(entry["digest"], hand.manifest, entry["download"], "bfloat16")


def test_a_machine_without_the_checkpoints_leaves_the_end_to_the_one_that_has_them(
    store: Store, redis_urls: tuple[str, str], tmp_path: Path
) -> None:
    hand = before_the_end(store, tmp_path)
    store.data.redis.delete(*store.data.redis.keys("flq:chunk:*"))
    key = keyspace.run(hand.run)
    store.control.redis.hset(key, "evaluated_version", 2)
    store.control.redis.delete(keyspace.round_(hand.run, hand.state.round))
    with Store.open(*redis_urls, tmp_path / "elsewhere") as other:
        lifecycle.advance(other, hand.run)
        assert (hand.state.state, hand.state.version) == ("training", 2)
        assert "version 1 is the best one" in hand.state.reason
        hand.advance()
        assert (hand.state.state, hand.state.version, hand.state.reason) == ("completed", 3, "")


def test_a_run_whose_checkpoints_are_nowhere_ends_after_the_deadline(
    store: Store, redis_urls: tuple[str, str], tmp_path: Path
) -> None:
    hand = before_the_end(store, tmp_path)
    store.data.redis.delete(*store.data.redis.keys("flq:chunk:*"))
    key = keyspace.run(hand.run)
    store.control.redis.hset(
        key, mapping={"evaluated_version": 2, "waited_s": hand.config.round.deadline_s}
    )
    store.control.redis.delete(keyspace.round_(hand.run, hand.state.round))
    with Store.open(*redis_urls, tmp_path / "elsewhere") as other:
        lifecycle.advance(other, hand.run)
    assert (hand.state.state, hand.state.version) == ("completed", 2)
    assert "its content is gone" in hand.state.reason


def test_the_reset_of_what_clients_keep_is_shown(store: Store, tmp_path: Path) -> None:
    hand = at_version_2(store, tmp_path)
    hand.go_back(1)
    number = hand.round.number - 1
    store.control.redis.hset(keyspace.run(hand.run), "state_since", number)
    assert diagnosis.notices(store, hand.state)[-1] == (
        f"round {number}: goes on from version 1: what clients keep is zero again since"
    )


def test_the_command_names_what_it_cannot_go_back_to(
    store: Store, redis_urls: tuple[str, str], tmp_path: Path
) -> None:
    hand = at_version_2(store, tmp_path)
    options = [f"--redis-url={redis_urls[0]}", f"--blob-url={redis_urls[1]}"]
    command = ["start-round", "mnist-3v7", "--run", hand.state.name, "--no-wait", "--from-version"]
    state = [f"--state-dir={tmp_path}", "--set", "round.cohort=2"]
    done = CliRunner().invoke(cli, [*command, "9", *options, *state])
    assert isinstance(done.exception, UnknownVersion)
    assert "version 9" in str(done.exception)
