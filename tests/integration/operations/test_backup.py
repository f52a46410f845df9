"""A run that is backed up, restored into other servers, and goes on; and files that are damaged."""

from __future__ import annotations

import json
import os
import signal
import zipfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from fl_queue.cli import cli
from fl_queue.common import schema
from fl_queue.common.safe_json import dumps
from fl_queue.config import loading
from fl_queue.coordinator.operations import backup, backup_file, controls, deletion
from fl_queue.coordinator.rounds import runs
from fl_queue.errors import ConfigError, DataError, RunStateError, UnknownRun, UnknownVersion
from fl_queue.models import checkpoint
from fl_queue.models.model_store import ModelStore
from fl_queue.protocol import tensor_layout
from fl_queue.protocol.manifest import Manifest, TensorSpec
from fl_queue.protocol.records import RoundRecord
from fl_queue.store import RunState, Store, keyspace
from fl_queue.store.embedded.server_pair import start
from tests.support.backup_files import rewrite_backup
from tests.support.federation import Federation, wait_for

MANIFEST = Manifest((TensorSpec("bias", (2,), "parameter"), TensorSpec("w", (3, 2), "parameter")))
BODIES = [
    tensor_layout.encode_body(
        MANIFEST, {"bias": np.full(2, n, np.float32), "w": np.full((3, 2), -n, np.float32)}
    )
    for n in range(4)
]
DIGESTS = [tensor_layout.body_digest(body) for body in BODIES]
NEWEST, BEST = 3, 1


@pytest.fixture
def run(store: Store, tmp_path: Path) -> str:
    """A run that trains: versions 0 to 3, of which 1 is the best, and round 4 open."""
    loaded = loading.load("mnist-3v7", ("redis.url=redis://:secret@host:1/0",), {})
    run = runs.start_run(store, "pilot", loaded, 9).run_id
    redis = store.control.redis
    for version, digest in enumerate(DIGESTS):
        add_version(store, run, version, tmp_path)
        if version:
            loss = 0.1 if version - 1 == BEST else 0.2
            record = RoundRecord(
                version, "train", "committed", "all in", version - 1, DIGESTS[version - 1],
                version, digest, ["a", "b"], validation={"num_examples": 3, "loss_sum": loss},
            )  # fmt: skip
            redis.rpush(keyspace.history(run), record.to_json())
        accuracy = 0.9 if version == BEST else 0.5
        done = {"state": "done", "metrics": {}, "finished": {"accuracy": accuracy}}
        ticket = {"job": "evaluator_1", "who": "evaluator"}
        redis.hset(keyspace.evaluations(run), str(version), dumps(done if version < 3 else ticket))
    redis.hset(keyspace.late(run), "1", "2")
    redis.hset(keyspace.run(run), mapping={"round": 4, "population": '["a","b"]', "shares": 2})
    return run


def add_version(store: Store, run: str, version: int, state_dir: Path) -> None:
    digest, redis = DIGESTS[version], store.control.redis
    checkpoint.write(
        checkpoint.checkpoint_folder(state_dir, run), digest, MANIFEST, BODIES[version], {}
    )
    redis.set(keyspace.manifest(run), MANIFEST.to_json())
    redis.hset(keyspace.versions(run), str(version), dumps({"digest": digest, "round": version}))
    redis.hset(keyspace.run(run), mapping={"version": version, "digest": digest})


def forget(store: Store, name: str) -> None:
    """Give a name free, as deleting its run does."""
    store.control.redis.hdel(keyspace.RUNS, name)


def everything(store: Store, run: str) -> list[Any]:
    """What has to come along, as it lies in Redis."""
    redis = store.control.redis
    return [
        redis.get(keyspace.config(run)),
        redis.get(keyspace.manifest(run)),
        redis.hgetall(keyspace.versions(run)),
        redis.lrange(keyspace.history(run), 0, -1),
        redis.hgetall(keyspace.late(run)),
    ]


def test_a_restored_run_has_everything_but_the_open_round(
    store: Store, run: str, tmp_path: Path
) -> None:
    file = tmp_path / "out" / "pilot.zip"
    file.parent.mkdir()
    made = backup.write(store, "pilot", file, tmp_path)
    assert file.stat().st_mode & 0o777 == 0o600  # It holds models, and who took part.
    before = everything(store, run)
    old = store.control.runs.get(run)
    store.control.redis.flushall()
    store.data.redis.flushall()
    other = tmp_path / "other"
    state = backup.restore(store, file, other)

    assert old is not None
    assert (made.version, made.best, made.rounds) == (NEWEST, BEST, 3)
    assert made.nbytes == file.stat().st_size
    assert list(file.parent.iterdir()) == [file]
    assert b"secret" not in file.read_bytes()
    assert everything(store, state.run_id) == before
    assert store.control.runs.names() == {"pilot": state.run_id}
    assert state.run_id != run
    assert (state.state, state.round, state.version) == ("cancelled", 3, NEWEST)
    assert "fl-queue resume pilot" in state.reason
    kept = ("population", "shares", "rounds_wanted", "created_at", "digest", "abandoned")
    assert {key: getattr(state, key) for key in kept} == {key: getattr(old, key) for key in kept}
    digest = DIGESTS[NEWEST]
    chunk_bytes = runs.current_config(store, state.run_id).redis.chunk_bytes
    assert (
        ModelStore(store, state.run_id, chunk_bytes, other).fetch(digest, MANIFEST)
        == BODIES[NEWEST]
    )
    folder = checkpoint.checkpoint_folder(other, state.run_id)
    assert {path.stem for path in folder.iterdir()} == {digest, DIGESTS[BEST]}


def test_the_newest_version_is_evaluated_again_when_its_verdict_was_missing(
    store: Store, run: str, tmp_path: Path
) -> None:
    store.control.redis.hdel(keyspace.evaluations(run), "2")
    backup.write(store, "pilot", tmp_path / "a.zip", tmp_path)
    state = backup.restore(store, tmp_path / "a.zip", tmp_path, "other")
    found = store.control.evaluations.all(state.run_id)

    assert found[BEST]["finished"] == {"accuracy": 0.9}
    assert found[2]["state"] == "failed"
    assert found[NEWEST]["job"].startswith(f"evaluator_{state.run_id}_{NEWEST}_")


def test_what_clients_keep_of_a_restored_run_is_needed_as_long_as_that_is_there(
    store: Store, run: str, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        backup.write(store, run, tmp_path / "a.zip", tmp_path)
        backup.restore(store, tmp_path / "a.zip", tmp_path, name)
    backup.write(store, "two", tmp_path / "b.zip", tmp_path)
    third = backup.restore(store, tmp_path / "b.zip", tmp_path, "three")
    ids = store.control.runs.names()
    assert third.restored_from == (ids["two"], run)

    store.control.redis.delete(keyspace.evaluations(run))  # Its ticket is none.
    for name in ("pilot", "one", "two"):
        state = store.control.runs.get(ids[name])
        assert state is not None
        store.control.redis.hset(keyspace.run(ids[name]), "state", "cancelled")
        deletion.delete(store, state, tmp_path)
        assert store.control.runs.is_needed(run)
    assert store.control.runs.is_needed(ids["two"])
    assert not store.control.runs.is_needed(ids["one"])
    deletion.delete(store, third, tmp_path)
    assert store.control.redis.hgetall(keyspace.RESTORED) == {}


def test_updates_of_asynchronous_rounds_keep_the_round_in_which_their_jobs_began(
    store: Store, run: str, tmp_path: Path
) -> None:
    record = RoundRecord(
        3, "train", "committed", "the buffer is full", 2, DIGESTS[2], 3, DIGESTS[3], ["a", "b"],
        accepted={"a": "1" * 64, "b": "2" * 64}, mode="async", carried={"b": {"round": 1, "version": 0}},
    )  # fmt: skip
    store.control.redis.rpush(keyspace.history(run), record.to_json())
    backup.write(store, run, tmp_path / "a.zip", tmp_path)
    restored = backup.restore(store, tmp_path / "a.zip", tmp_path, "other").run_id
    for client, expected in (("a", (3, "1" * 64)), ("b", (1, "2" * 64))):
        assert store.control.receipts.accepted(restored, client) == expected
        assert store.control.receipts.accepted(restored, keyspace.in_backup(client)) == expected


@pytest.mark.parametrize("ended", ["completed", "failed"])
def test_a_run_that_has_ended_stays_so(store: Store, run: str, tmp_path: Path, ended: str) -> None:
    store.control.redis.hset(keyspace.run(run), mapping={"state": ended, "reason": "so it was"})
    backup.write(store, run, tmp_path / "a.zip", tmp_path)
    forget(store, "pilot")
    state = backup.restore(store, tmp_path / "a.zip", tmp_path)

    assert (state.state, state.reason) == (ended, "so it was")


def test_version_0_alone_is_restored_at_its_round(store: Store, tmp_path: Path) -> None:
    loaded = loading.load("mnist-3v7", (), {})
    run = runs.start_run(store, "young", loaded, 2).run_id
    with pytest.raises(RunStateError, match="no version yet"):
        backup.write(store, "young", tmp_path / "a.zip", tmp_path)
    add_version(store, run, 0, tmp_path)
    backup.write(store, "young", tmp_path / "a.zip", tmp_path)
    forget(store, "young")
    state = backup.restore(store, tmp_path / "a.zip", tmp_path)

    assert (state.round, state.version) == (0, 0)
    # Decided by the first round that trains, once: a 0 would be in its way.
    assert not store.control.redis.hexists(keyspace.run(state.run_id), "shares")


def test_a_taken_name_is_refused_and_another_one_taken(
    store: Store, run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup.write(store, "pilot", tmp_path / "a.zip", tmp_path)
    with monkeypatch.context() as patch:
        patch.delattr(backup.backup_models, "restore_models")  # Known before a model is read.
        with pytest.raises(RunStateError, match=r"--run NAME.*fl-queue delete pilot"):
            backup.restore(store, tmp_path / "a.zip", tmp_path)
    with pytest.raises(ConfigError) as refused:
        backup.restore(store, tmp_path / "a.zip", tmp_path, "no_name")
    state = backup.restore(store, tmp_path / "a.zip", tmp_path, "copy")

    assert refused.value.field == "--run"
    assert (state.name, state.version) == ("copy", NEWEST)
    assert "fl-queue resume copy" in state.reason
    assert store.control.runs.names() == {"pilot": run, "copy": state.run_id}


def test_a_name_that_is_taken_meanwhile_leaves_nothing_behind(
    store: Store, run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup.write(store, "pilot", tmp_path / "a.zip", tmp_path)
    forget(store, "pilot")
    publish = ModelStore.publish

    def taken(*args: Any) -> None:
        publish(*args)
        store.control.redis.hset(keyspace.RUNS, "pilot", "pilot-abcdef")

    monkeypatch.setattr(ModelStore, "publish", taken)
    with pytest.raises(RunStateError):
        backup.restore(store, tmp_path / "a.zip", tmp_path / "other")

    assert list((tmp_path / "other" / "checkpoints").iterdir()) == []
    assert store.data.redis.keys("flq:chunk:*") == []


def test_a_lost_answer_is_not_taken_for_a_taken_name(
    store: Store, run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup.write(store, "pilot", tmp_path / "a.zip", tmp_path)
    forget(store, "pilot")
    transact = store.control.transact

    def deaf(*args: Any) -> bool:
        transact(*args)
        return False

    monkeypatch.setattr(store.control, "transact", deaf)
    state = backup.restore(store, tmp_path / "a.zip", tmp_path)

    assert store.control.runs.names() == {"pilot": state.run_id}


def test_an_interrupted_restore_can_be_repeated(
    store: Store, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store.control, "transact", interrupted)
        with pytest.raises(KeyboardInterrupt):
            backup.restore(store, file, file.parent)
    assert store.control.redis.keys() == []

    assert backup.restore(store, file, file.parent).version == NEWEST


def test_a_version_that_is_superseded_while_it_is_read_is_left_for_the_newer_one(
    store: Store, run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.control.redis.hdel(keyspace.versions(run), str(NEWEST))
    store.control.redis.hset(keyspace.run(run), mapping={"version": 2, "digest": DIGESTS[2]})
    load = ModelStore.load_version

    def pruned(models: ModelStore, version: int) -> Any:
        if version == 2:
            add_version(store, run, NEWEST, tmp_path)
            raise UnknownVersion(run, version, "has been pruned")
        return load(models, version)

    monkeypatch.setattr(ModelStore, "load_version", pruned)

    assert backup.write(store, "pilot", tmp_path / "a.zip", tmp_path).version == NEWEST


def test_a_best_version_that_is_nowhere_is_left_out_and_a_newest_one_is_an_error(
    store: Store, run: str, tmp_path: Path
) -> None:
    folder = checkpoint.checkpoint_folder(tmp_path, run)
    (folder / f"{DIGESTS[BEST]}.safetensors").unlink()
    made = backup.write(store, "pilot", tmp_path / "a.zip", tmp_path)
    (folder / f"{DIGESTS[NEWEST]}.safetensors").unlink()
    before = (tmp_path / "a.zip").read_bytes()
    with pytest.raises(UnknownVersion):
        backup.write(store, "pilot", tmp_path / "a.zip", tmp_path)

    assert made.best is None
    assert f"version {BEST}" in made.left_out
    assert (tmp_path / "a.zip").read_bytes() == before


@pytest.mark.parametrize("target", ["absent/a.zip", ".", "pipe"])
def test_a_backup_that_cannot_be_written_is_an_error(
    store: Store, run: str, tmp_path: Path, target: str
) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError) as refused:
        backup.write(store, "pilot", tmp_path / target, tmp_path)
    with pytest.raises(UnknownRun):
        backup.write(store, "absent", tmp_path / target, tmp_path)

    assert refused.value.path == str(tmp_path / target)
    assert (tmp_path / "pipe").is_fifo()


# Files that are not what they should be


def put(*path: str | int) -> Callable[[dict[str, Any]], None]:
    """A change that sets the last of ``path`` at the place the others lead to."""

    def change(raw: Any) -> None:
        for step in path[:-2]:
            raw = raw[step]
        raw[path[-2]] = path[-1]

    return change


DAMAGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "format": (put("format", 2), "format is 2; this fl-queue reads 1"),
    "format_type": (put("format", True), "format is True"),
    "not_json": (lambda raw: b"{", "run.json is not JSON"),
    "not_utf8": (lambda raw: b'"\xff"', "run.json is not JSON"),
    "nested": (lambda raw: b"[" * 100_000, "run.json is not JSON"),
    "a_list": (lambda raw: b"[]", "format is None"),
    "nan": (put("made_at", float("nan")), "NaN"),
    "surrogate": (put("run_id", "\ud800"), "run.json is not JSON"),
    "missing": (lambda raw: raw.pop("late"), "late: is missing"),
    "unknown": (put("extra", 1), "extra: is unknown"),
    "history_type": (put("history", 1, "round", "x"), "history[1].round: is a str, not an integer"),
    "history_bool": (put("history", 1, "round", True), "history[1].round"),
    "history_field": (put("history", 0, "more", 1), "history[0].more: is unknown"),
    "outcome": (put("history", 0, "outcome", "won"), "history[0].outcome: is not one of"),
    "cohort": (put("history", 0, "cohort", [1]), "history[0].cohort[0]"),
    "state_field": (put("state", "ticked_at", "1"), "state has a field"),
    "state_number": (put("state", "rounds_wanted", "many"), "many"),
    "state_type": (put("state", "rounds_wanted", 3), "state.rounds_wanted"),
    "state_name": (put("state", "name", "../up"), "state.name"),
    "run_id": (put("run_id", "../up"), "run_id"),
    "restored_from": (put("state", "restored_from", '["../up"]'), "restored_from"),
    "state_time": (put("state", "created_at", "inf"), "time"),
    "population": (put("state", "population", "[1]"), "state.population"),
    "version": (put("state", "version", "7"), "state.version"),
    "no_version": (put("state", "version", ""), "state.version"),
    "digest": (put("state", "digest", DIGESTS[0]), "state.digest"),
    "versions": (lambda raw: raw["versions"].pop("0"), "versions"),
    "path": (put("versions", "0", "digest", "../../x"), "versions.0.digest"),
    "version_round": (put("versions", "0", "round", -1), "versions.0.round"),
    "models": (put("models", [0]), "models"),
    "other_model": (put("models", [3, 2]), "it has no " + DIGESTS[2]),
    "manifest": (put("manifest", {}), "manifest"),
    "huge_model": (put("manifest", "tensors", 0, "shape", [10**12]), "not the model's size"),
    "other_tensors": (put("manifest", "tensors", 0, "name", "a"), "other tensors"),
    "no_config": (put("config", []), "config"),
    "config": (put("config", 0, "config", "train", "epochs", 0), "train.epochs"),
    "segment": (put("state", "segment", "1"), "segment"),
    "record_segment": (put("history", 0, "config_segment", -1), "segment"),
    "late": (put("late", "x", 1), "late.x"),
    "evaluations": (put("evaluations", "0", "state", "queued"), "evaluations.0"),
    "finished": (put("evaluations", "0", "finished", {"accuracy": "high"}), "accuracy"),
    "evaluated": (put("evaluations", "9", {"state": "failed"}), "evaluations.9"),
}  # fmt: skip


@pytest.fixture
def file(store: Store, run: str, tmp_path: Path) -> Path:
    """A backup of a run that is gone."""
    made = backup.write(store, "pilot", tmp_path / "a.zip", tmp_path).path
    store.control.redis.flushall()
    return made


def refusal(store: Store, file: Path) -> str:
    """What a file is refused for, with nothing changed."""
    other = file.parent / "other"
    with pytest.raises(DataError) as refused:
        backup.restore(store, file, other)
    assert refused.value.path == str(file)
    assert "\n" not in refused.value.reason
    assert store.control.redis.keys() == []
    assert store.data.redis.keys("flq:chunk:*") == []
    assert list(other.glob("checkpoints/*")) == []
    return refused.value.reason


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_record_that_is_not_a_runs_is_refused(store: Store, file: Path, damage: str) -> None:
    change, words = DAMAGES[damage]
    rewrite_backup(file, change)

    assert words in refusal(store, file)


def test_the_rewriting_of_these_tests_does_no_damage(store: Store, file: Path) -> None:
    rewrite_backup(file, lambda raw: None)

    assert backup.restore(store, file, file.parent).version == NEWEST


def test_numbers_are_restored_as_redis_scripts_compare_them(store: Store, file: Path) -> None:
    rewrite_backup(file, put("state", "version", " 3"))
    state = backup.restore(store, file, file.parent)

    assert store.control.redis.hget(keyspace.run(state.run_id), "version") == b"3"


@pytest.mark.parametrize("text", ["", "no zip at all", "PK\3\4 nor this"])
def test_another_file_is_refused(store: Store, file: Path, text: str) -> None:
    file.write_text(text)
    assert "is not a backup" in refusal(store, file)


def test_an_absent_file_is_refused(store: Store, file: Path) -> None:
    file.unlink()
    assert refusal(store, file) == "no such file"


def test_a_foreign_zip_is_refused(store: Store, file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("hello", "world")
    assert "it has no run.json" in refusal(store, file)


def test_a_compressed_entry_is_refused(store: Store, file: Path) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("run.json", b" " * 10_000_000)
    assert "is compressed" in refusal(store, file)


def test_an_entry_that_claims_more_than_the_file_has_is_refused(store: Store, file: Path) -> None:
    changed = bytearray(file.read_bytes())
    entry = changed.index(b"PK\1\2")  # Of the directory; its two sizes are at 20 and 24.
    changed[entry + 20 : entry + 28] = (2**30 - 1).to_bytes(4, "little") * 2
    file.write_bytes(changed)
    assert "longer than the file" in refusal(store, file)


def test_a_model_of_another_digest_is_refused(store: Store, file: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    first, second = (f"{DIGESTS[version]}.safetensors" for version in (BEST, NEWEST))
    entries[second] = entries[first]
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    assert f"{second} is damaged" in refusal(store, file)


def test_a_record_over_the_cap_is_refused_on_both_sides(
    store: Store, run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = backup.write(store, "pilot", tmp_path / "a.zip", tmp_path)
    monkeypatch.setattr(backup_file, "MAX_RECORD_BYTES", 1000)
    with pytest.raises(DataError, match="too long"):
        backup.write(store, "pilot", tmp_path / "b.zip", tmp_path)
    store.control.redis.flushall()

    assert "at most 1000 are read" in refusal(store, made.path)


def test_a_file_cut_anywhere_is_refused(store: Store, file: Path) -> None:
    whole = file.read_bytes()
    for length in [*range(0, len(whole), 97), len(whole) - 1]:
        file.write_bytes(whole[:length])
        refusal(store, file)


def test_a_flipped_bit_is_refused_or_changes_nothing(store: Store, file: Path) -> None:
    whole, before = file.read_bytes(), json.loads(zipfile.ZipFile(file).read("run.json"))
    refused = 0
    for position in range(5, len(whole), 61):
        changed = bytearray(whole)
        changed[position] ^= 0x10
        file.write_bytes(changed)
        try:
            state = backup.restore(store, file, file.parent / "other")
        except DataError:
            refused += 1
            continue
        # Such as a date of the zip.
        assert dumps(before["history"]) == dumps(
            [json.loads(record.to_json()) for record in store.control.history.records(state.run_id)]
        )
        forget(store, "pilot")

    assert refused > 50


def test_every_field_of_a_record_has_a_shape_that_is_checked() -> None:
    record = RoundRecord(1, "train", "committed", "", 0, "")
    raw = json.loads(record.to_json())
    assert schema.parse(RoundRecord, raw) == record
    for field in fields(RoundRecord):
        with pytest.raises(schema.Invalid, match=f"^{field.name}: is"):
            schema.parse(RoundRecord, raw | {field.name: (1,)})


# The commands, and the whole way


def test_the_commands_write_one_line_and_teach(store: Store, run: str, tmp_path: Path) -> None:
    where = ["--redis-url", store.servers.url, "--blob-url", store.servers.blob_url]
    where += ["--state-dir", str(tmp_path)]
    file = tmp_path / "a.zip"

    def invoke(*arguments: str) -> str:
        done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
        assert done.exit_code == 0
        return done.stdout

    written = invoke("backup", "pilot", "-o", str(file), *where)
    restored = invoke("restore", str(file), "--run", "copy", *where)
    help_texts = [" ".join(invoke(name, "--help").split()) for name in ("backup", "restore")]

    assert written == f"{file}: run pilot, version 3, best 1, 3 rounds, 0.0 MB\n"
    assert restored.startswith("copy (copy-")
    assert restored.endswith(
        ") is cancelled at version 3 (restored from a backup; go on with `fl-queue resume copy`)\n"
    )
    assert "fl-queue restore" in help_texts[0]
    assert "fl-queue resume NAME" in help_texts[1]
    assert "draws other random numbers" in help_texts[1]


ROUNDS = 4


def digests(store: Store, run: str) -> list[str]:
    return [entry["digest"] for entry in store.control.versions.all(run).values()]


def resumed(federation: Federation, state: RunState) -> list[str]:
    controls.resume(federation.store, state.name, federation.redis.state_dir)
    assert federation.finish(state.run_id, 150).state == "completed"
    return digests(federation.store, state.run_id)


def held_after(federation: Federation, version: int, name: str, *overrides: str) -> tuple[str, int]:
    """Start a run, and stop a training that follows a version; the run's id and the pid to go on."""
    fired = federation.arm("client.trained", "stop", "site-1_")
    run = federation.begin(name, *overrides)
    while True:
        wait_for("a training", fired.exists, 150)
        stopped = int(fired.read_text())
        state = federation.store.control.runs.get(run)
        if state is not None and state.version >= version:
            return run, stopped
        fired = federation.arm("client.trained", "stop", "site-1_")
        os.kill(stopped, signal.SIGCONT)


@pytest.mark.timeout(480)
def test_a_run_restored_elsewhere_goes_on_with_the_bits_of_the_undisturbed_one(
    tmp_path: Path,
) -> None:
    file = tmp_path / "same.zip"
    with start(tmp_path / "first") as redis:
        federation = Federation(redis, tmp_path, clients=2, evaluator=False, forked=True)
        try:
            # Version 2 is there, and the next round is open.
            settings = ("round.cohort=2", f"run.rounds={ROUNDS}")
            run, stopped = held_after(federation, 2, "same", *settings)
            made = backup.write(federation.store, "same", file, redis.state_dir)
            os.kill(stopped, signal.SIGCONT)
            assert federation.finish(run, 150).state == "completed"
            undisturbed = digests(federation.store, run)
            history = federation.committed(run)
        finally:
            federation.close()
    assert 2 <= made.version < ROUNDS
    with start(tmp_path / "second") as redis:
        store = Store.open(redis.url, redis.blob_url, redis.state_dir)
        state = backup.restore(store, file, redis.state_dir)
        store.close()
        federation = Federation(redis, tmp_path, clients=2, evaluator=False, forked=True)
        try:
            found = resumed(federation, state)
            again = federation.committed(state.run_id)
        finally:
            federation.close()

    assert found == undisturbed
    assert len(found) == ROUNDS + 1
    assert [(r.round, r.cohort, r.accepted) for r in again] == [
        (r.round, r.cohort, r.accepted) for r in history
    ]
