"""Tags: names of versions, which retention and backups keep, and commands take in place of a number."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fl_queue.cli import cli
from fl_queue.coordinator.operations import backup, controls, tagging
from fl_queue.coordinator.rounds import runs
from fl_queue.errors import ConfigError, MessageError, RunStateError, UnknownVersion
from fl_queue.models import retention
from fl_queue.models.model_store import ModelStore
from fl_queue.protocol.state import parse_run_state
from fl_queue.reporting import run_status
from fl_queue.store import Store, keyspace
from fl_queue.store.transactions import runs as transactions
from tests.support.manual_run import ManualRun


def trained(store: Store, folder: Path, *overrides: str, versions: int = 2) -> ManualRun:
    hand = ManualRun(store, folder, "ab", 4, *overrides)
    store.control.redis.hset(keyspace.run(hand.run), "rounds_wanted", "9")
    for _ in range(versions):
        for client in hand.clients:
            hand.update(client)
        hand.work()
    return hand


def digest(hand: ManualRun, version: int) -> str:
    return str(hand.store.control.versions.get(hand.run, version)["digest"])


def is_on_disk(hand: ManualRun, version: int) -> bool:
    folder = hand.folder / "checkpoints" / hand.run
    return (folder / f"{digest(hand, version)}.safetensors").exists()


def test_a_tagged_version_is_kept_until_its_tag_is_removed(store: Store, tmp_path: Path) -> None:
    # Version 0 is the best, as all are equal.
    options = ("model.keep_versions=1", "run.evaluate_every=0")
    hand = trained(store, tmp_path, *options, versions=1)
    assert tagging.tag(store, hand.run, "1", "start") == 1
    for _ in range(3):
        for client in hand.clients:
            hand.update(client)
        hand.work()
    assert (is_on_disk(hand, 1), is_on_disk(hand, 2)) == (True, False)
    assert tagging.untag(store, hand.run, "start") == 1
    models = ModelStore(store, hand.run, hand.config.redis.chunk_bytes, tmp_path)
    retention.prune_versions(models, hand.config)
    assert not is_on_disk(hand, 1)
    with pytest.raises(UnknownVersion, match=r"has been pruned \(model.keep_versions = 1\)"):
        tagging.tag(store, hand.run, "1", "late")


@pytest.mark.parametrize("old", [None, 2])
def test_a_version_that_is_pruned_while_it_is_tagged_gets_no_tag(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: int | None
) -> None:
    options = ("model.keep_versions=3", "run.evaluate_every=0")
    hand = trained(store, tmp_path, *options, versions=3)
    if old is not None:
        tagging.tag(store, hand.run, str(old), "paper")
    tags = hand.state.tags
    set_tags = transactions.set_tags

    def late(*args: Any) -> bool:
        """Retention has decided before the tag is written, and removes after."""
        done = set_tags(*args)
        models = ModelStore(store, hand.run, hand.config.redis.chunk_bytes, tmp_path)
        models.drop(digest(hand, 1), hand.manifest.nbytes)
        (models.folder / f"{digest(hand, 1)}.safetensors").unlink(missing_ok=True)
        return done

    monkeypatch.setattr(transactions, "set_tags", late)
    with pytest.raises(UnknownVersion, match="has been pruned"):
        tagging.tag(store, hand.run, "1", "paper")
    assert hand.state.tags == tags


def test_tags_are_moved_shown_and_removed(store: Store, tmp_path: Path) -> None:
    hand = trained(store, tmp_path)
    tagging.tag(store, hand.run, "1", "paper")
    tagging.tag(store, hand.run, "newest", "paper")
    tagging.tag(store, hand.run, "paper", "also")
    assert hand.state.tags == {"paper": 2, "also": 2}
    assert run_status.run_status(store, hand.state).tags == {"also": 2, "paper": 2}
    streams = {keyspace.events(hand.run): "0-0"}
    events = [event for _, _, event in store.control.events.read(streams, None)]
    named = [(e["version"], e["name"]) for e in events if e["event"] == "version_tagged"]
    assert named == [(1, "paper"), (2, "paper"), (2, "also")]
    tagging.tag(store, hand.run, "2", "also")  # Nothing changes, and nothing is recorded.
    tagging.untag(store, hand.run, "also")
    with pytest.raises(RunStateError, match=r"no tag 'papre'.*paper"):
        tagging.untag(store, hand.run, "papre")


@pytest.mark.parametrize("name", ["", "7", "best", "newest", "a b", "x" * 64, "é", "-x", "a/b"])
def test_a_name_that_could_be_a_version_or_a_path_is_refused(
    store: Store, tmp_path: Path, name: str
) -> None:
    with pytest.raises(ConfigError, match="is not a tag"):
        tagging.tag(store, "no-run", "0", name)


def test_what_is_no_version_cannot_be_tagged(store: Store, tmp_path: Path) -> None:
    hand = trained(store, tmp_path)
    with pytest.raises(UnknownVersion, match="does not exist"):
        tagging.tag(store, hand.run, "12", "x")
    with pytest.raises(RunStateError, match=r"'paper' is neither a version nor a tag \(no tags"):
        tagging.tag(store, hand.run, "paper", "x")


def test_tags_of_commands_that_race_are_all_there_while_rounds_are_committed(
    store: Store, tmp_path: Path
) -> None:
    hand = trained(store, tmp_path)
    names = [f"t{number}" for number in range(8)]
    threads = [
        threading.Thread(target=tagging.tag, args=(store, hand.run, "1", name)) for name in names
    ]
    for thread in threads:
        thread.start()
    for client in hand.clients:
        hand.update(client)
    hand.work()
    for thread in threads:
        thread.join()
    assert hand.state.tags == dict.fromkeys(names, 1)
    assert hand.state.version == 3


def test_a_backup_has_tags_and_tagged_versions(store: Store, tmp_path: Path) -> None:
    hand = trained(store, tmp_path)
    tagging.tag(store, hand.run, "1", "paper")
    controls.cancel(store, hand.run)
    backup.write(store, hand.run, tmp_path / "b", tmp_path)
    store.control.redis.flushall()
    store.data.redis.flushall()
    state = backup.restore(store, tmp_path / "b", tmp_path / "new")
    assert state.tags == {"paper": 1}
    folder = tmp_path / "new/checkpoints" / state.run_id
    entries = store.control.versions.all(state.run_id)
    assert (folder / f"{entries[1]['digest']}.safetensors").exists()


@pytest.mark.parametrize("tags", ['{"a":"b"}', "[]", '{"a":1', '{"a":1.5}'])
def test_tags_that_cannot_be_read_are_an_error_of_the_run(
    store: Store, tmp_path: Path, tags: str
) -> None:
    hand = ManualRun(store, tmp_path, "a", 2)
    raw = store.control.redis.hgetall(keyspace.run(hand.run))
    fields = {key.decode(): value.decode() for key, value in raw.items()}
    with pytest.raises(MessageError, match="tags"):
        parse_run_state(hand.run, fields | {"tags": tags})


def test_commands_take_a_tag_in_place_of_a_number(
    store: Store, redis_urls: tuple[str, str], tmp_path: Path
) -> None:
    hand = trained(store, tmp_path)
    name = hand.state.name

    def command(*words: str) -> Result:
        options = [f"--redis-url={redis_urls[0]}", f"--blob-url={redis_urls[1]}"]
        return CliRunner().invoke(cli, [*words, *options, f"--state-dir={tmp_path}"])

    def answer(*words: str) -> Any:
        done = command(*words, "--json")
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    assert "no tags" in command("tag", name).stdout
    assert answer("tag", name, "1", "paper") == {"run": name, "tags": {"paper": 1}}
    assert "paper  version 1" in command("tag", name).stdout
    out = str(tmp_path / "m.safetensors")
    assert answer("export", name, "-o", out, "--version", "paper")["digest"] == digest(hand, 1)
    assert answer("export", name, "-o", out, "--version", "2")["version"] == 2
    assert "tags paper = 1" in command("status", name).stdout
    controls.cancel(store, hand.run)
    start = ["start-round", "mnist-3v7", "--run", name, "--no-wait", "--set", "round.cohort=2"]
    assert answer(*start, "--from-version", "paper")["version"] == 3
    assert digest(hand, 3) == digest(hand, 1)
    assert answer("tag", name, "--remove", "paper") == {"run": name, "tags": {}}
    for words, field in (((name, "1"), "NAME"), ((name, "1", "x", "--remove", "y"), "--remove")):
        done = command("tag", *words)
        assert isinstance(done.exception, ConfigError)
        assert done.exception.field == field
    assert isinstance(command("export", name, "-o", out, "--version", "x").exception, RunStateError)
    assert runs.find_run(store, name).tags == {}
