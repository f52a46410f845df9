"""A process that can write to Redis decides neither where a machine writes or deletes, nor whether its readers go on."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fl_queue.cli import cli
from fl_queue.config import loading
from fl_queue.coordinator.operations import deletion
from fl_queue.coordinator.operations.healer import Healer
from fl_queue.coordinator.rounds import runs
from fl_queue.errors import UnknownRun
from fl_queue.models import checkpoint, update_archive
from fl_queue.reporting import exporters
from fl_queue.store import RunState, Store, keyspace


def command(urls: tuple[str, str], state_dir: Path, *words: str) -> Result:
    """A command of this program; only a documented error may end it."""
    where = {"FLQ_REDIS_URL": urls[0], "FLQ_REDIS_BLOB_URL": urls[1], "COLUMNS": "200"}
    where["FLQ_STATE_DIR"] = str(state_dir)
    return CliRunner().invoke(cli, list(words), env=where)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A private folder."""
    folder = tmp_path / "victim"
    folder.mkdir()
    (folder / "precious.txt").write_text("mine")
    return folder


def start(store: Store, name: str = "demo") -> RunState:
    return runs.start_run(store, name, loading.load("mnist-3v7", environ={}), 1)


def renamed(store: Store, state: RunState, run: str) -> None:
    """The keys of a run lie under another run id, which its name leads to."""
    control = store.control.redis
    control.rename(keyspace.run(state.run_id), keyspace.run(run))
    control.rename(keyspace.config(state.run_id), keyspace.config(run))
    control.hset(keyspace.run(run), "state", "completed")
    control.hset(keyspace.RUNS, state.name, run)


def test_a_tombstone_is_no_path(store: Store, canary: Path, tmp_path: Path) -> None:
    state_dir = tmp_path / "state"
    beside = state_dir / "other"
    beside.mkdir(parents=True)
    now = store.control.now()
    store.control.redis.zadd(
        keyspace.DELETED, {str(canary): now, "../other": now, "..": now, "": now, "\xff": now}
    )

    Healer(store, state_dir).tick()

    assert (canary / "precious.txt").read_text() == "mine"
    assert beside.is_dir()
    assert str(canary) in [entry.entry for entry in store.control.unreadable.found]


def test_a_tombstone_is_no_pattern_and_no_living_run(store: Store, tmp_path: Path) -> None:
    state = start(store)
    folder = checkpoint.checkpoint_folder(tmp_path, state.run_id)
    folder.mkdir(parents=True)
    store.control.redis.zadd(keyspace.DELETED, {"*": store.control.now(), state.run_id: 1e300})

    deletion.sweep(store, tmp_path)
    deletion.sweep_here(store, tmp_path)

    assert runs.find_run(store, "demo") == state
    assert folder.is_dir()


def test_a_run_whose_id_is_a_path_is_no_run(
    store: Store, redis_urls: tuple[str, str], canary: Path, tmp_path: Path
) -> None:
    renamed(store, start(store), str(canary))

    with pytest.raises(UnknownRun):
        runs.find_run(store, "demo")
    for words in (
        ("delete", "demo", "--yes"),
        ("metrics", "demo", str(tmp_path / "out"), "--to=csv"),
    ):
        found = command(redis_urls, tmp_path / "state", *words)
        assert isinstance(found.exception, UnknownRun), found.output

    assert [path.name for path in canary.iterdir()] == ["precious.txt"]


def test_what_writes_and_deletes_refuses_such_an_id_by_itself(
    store: Store, canary: Path, tmp_path: Path
) -> None:
    state = start(store)
    for run in (str(canary), f"../../{canary.name}", ".."):
        with pytest.raises(Exception, match="not the name"):
            exporters.open_sink("csv", tmp_path / "out", run)
        with pytest.raises(Exception, match="not the name"):
            deletion.forget_here(tmp_path / "state", run)
        with pytest.raises(Exception, match="not the name"):
            update_archive.keep_only(tmp_path / "state", state.run_id, 1, {f"{run}/x": "0" * 64})
    assert (canary / "precious.txt").exists()
