"""A client's state counts once its very update was accepted; anything else leaves the old one."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from fl_queue.client import client_state
from fl_queue.client.client_state import AcceptedUpdate, ClientStateFolder
from fl_queue.errors import LocalStorageError
from fl_queue.protocol.manifest import Manifest, TensorSpec

LAYOUT = client_state.layout(
    {"c": Manifest((TensorSpec("w", (2,), "parameter"), TensorSpec("w.x", (), "parameter")))}
)
ONE, TWO = "1" * 64, "2" * 64


def write(folder: Path, number: int, update: str, value: float, run: str = "run-1") -> None:
    pieces = [np.full(spec.shape, value, np.float32) for spec in LAYOUT.tensors]
    ClientStateFolder(folder, run, "a").write(AcceptedUpdate(number, update), LAYOUT, pieces)


def value(folder: Path, before: int, accepted: AcceptedUpdate | None) -> float | None:
    kept = ClientStateFolder(folder, "run-1", "a").load(before, accepted, LAYOUT)
    assert bool(kept.state) == (kept.note == f"of round {accepted.round}" if accepted else False)
    return float(kept.state["c"]["w"][0]) if kept.state else None


def left(folder: Path) -> list[str]:
    return sorted(path.name[:4] for path in (folder / "run-1/a").iterdir())


def test_a_retried_late_or_abandoned_round_advances_nothing(tmp_path: Path) -> None:
    write(tmp_path, 1, ONE, 1.0)
    assert value(tmp_path, 2, AcceptedUpdate(1, ONE)) == 1.0
    write(tmp_path, 2, ONE, 2.0)  # An attempt whose update never got there,
    write(tmp_path, 2, TWO, 2.5)  # and another one, of a round that is abandoned.
    assert value(tmp_path, 2, AcceptedUpdate(1, ONE)) == 1.0
    assert value(tmp_path, 3, AcceptedUpdate(1, ONE)) == 1.0
    assert left(tmp_path) == ["1_11"]
    write(tmp_path, 3, ONE, 3.0)
    write(tmp_path, 3, TWO, 3.5)
    assert value(tmp_path, 4, AcceptedUpdate(3, TWO)) == 3.5
    assert left(tmp_path) == ["3_22"]


def test_before_anything_was_accepted_a_client_starts_from_zero(tmp_path: Path) -> None:
    write(tmp_path, 1, ONE, 1.0)
    kept = ClientStateFolder(tmp_path, "run-1", "a").load(2, None, LAYOUT)
    assert (kept.state, kept.is_missing, "starts from zero" in kept.note) == ({}, False, True)
    assert left(tmp_path) == []


def test_a_state_that_is_lost_or_damaged_is_reported_as_missing(tmp_path: Path) -> None:
    write(tmp_path, 1, ONE, 1.0)
    (file,) = tmp_path.rglob("*.safetensors")
    damaged = bytearray(file.read_bytes())
    damaged[-1] ^= 1
    file.chmod(0o600)
    file.write_bytes(damaged)
    for accepted in (AcceptedUpdate(1, ONE), AcceptedUpdate(2, TWO)):
        kept = ClientStateFolder(tmp_path, "run-1", "a").load(3, accepted, LAYOUT)
        assert (kept.state, kept.is_missing) == ({}, True)
        assert f"missing, that of round {accepted.round}: starts from zero" in kept.note


@pytest.mark.parametrize("has_one", [True, False])
def test_another_optimizer_begins_anew_beside_the_rest_of_the_state(
    tmp_path: Path, has_one: bool
) -> None:
    """Its tensors are other ones, and private tensors are as good as before."""
    private = Manifest((TensorSpec("mean", (2,), "float_buffer"),))
    adam = Manifest((TensorSpec("exp_avg/w", (2,), "parameter"),))
    sgd = Manifest((TensorSpec("momentum_buffer/w", (2,), "parameter"),))
    before = client_state.layout({"private": private, **({"optimizer": adam} if has_one else {})})
    pieces = [np.full(spec.shape, 3.0, np.float32) for spec in before.tensors]
    folder, update = ClientStateFolder(tmp_path, "run-1", "a"), AcceptedUpdate(1, ONE)
    folder.write(update, before, pieces)

    now = client_state.layout({"private": private, "optimizer": sgd})
    kept = folder.load(2, update, now)
    without = folder.load(2, update, client_state.layout({"private": private}))
    other = folder.load(2, update, client_state.layout({"personal": private, "optimizer": adam}))

    assert set(kept.state) == set(without.state) == {"private"}
    assert kept.state["private"]["mean"].tolist() == [3.0, 3.0]
    assert kept.note == "of round 1, but for that of the optimizer, which is another one"
    assert (kept.is_missing, without.note) == (False, "of round 1")
    assert other.is_missing
    same = folder.load(2, update, before)
    assert set(same.state) == {"private", *({"optimizer"} if has_one else ())}
    assert same.note == "of round 1"


def test_only_its_owner_can_read_it(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        write(tmp_path / "states", 1, ONE, 1.0)
    finally:
        os.umask(old)
    (file,) = tmp_path.rglob("*.safetensors")
    assert file.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "states").stat().st_mode & 0o777 == 0o700


def test_a_full_disk_names_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LocalStorageError, match="state cannot be written"):
        write(tmp_path / "file", 1, ONE, 1.0)


def test_states_of_runs_unknown_for_a_week_are_removed(tmp_path: Path) -> None:
    for run in ("known", "gone", "restored-perhaps"):
        (tmp_path / run / "a").mkdir(parents=True)
    week_ago = time.time() - 8 * 24 * 3600
    for run in ("known", "gone"):
        os.utime(tmp_path / run, (week_ago, week_ago))
    client_state.sweep(tmp_path, lambda run: run == "known")
    client_state.sweep(tmp_path, lambda run: False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["known", "restored-perhaps"]


def test_what_belongs_to_the_newest_backup_stays_beside_the_newest_state(tmp_path: Path) -> None:
    for number, update in ((1, ONE), (2, TWO), (3, ONE), (4, TWO)):
        write(tmp_path, number, update, number)
    kept = ClientStateFolder(tmp_path, "run-1", "a").load(
        5, AcceptedUpdate(4, TWO), LAYOUT, backed_up=AcceptedUpdate(2, TWO)
    )
    assert kept.note == "of round 4"
    assert left(tmp_path) == ["2_22", "4_22"]


def test_a_restored_run_finds_what_lies_under_the_ids_of_those_before_it(tmp_path: Path) -> None:
    write(tmp_path, 1, ONE, 1.0, "oldest")
    write(tmp_path, 2, TWO, 2.0, "old")
    origins = ("old", "oldest")
    for update, expected in ((AcceptedUpdate(1, ONE), 1.0), (AcceptedUpdate(2, TWO), 2.0)):
        kept = ClientStateFolder(tmp_path, "run-1", "a").load(3, update, LAYOUT, origins=origins)
        assert float(kept.state["c"]["w"][0]) == expected
    # Its own from now on, and readable by the owner only; the others are removed when no run needs them.
    (file,) = (tmp_path / "run-1").rglob("*.safetensors")
    assert file.stat().st_mode & 0o777 == 0o600
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3
    assert value(tmp_path, 4, AcceptedUpdate(2, TWO)) == 2.0


def test_names_that_are_not_ours_stay(tmp_path: Path) -> None:
    write(tmp_path, 1, ONE, 1.0)
    for name in ("lost+found", "\u00b2_x", ".DS_Store"):
        (tmp_path / name).mkdir()
        (tmp_path / "run-1/a" / name).mkdir()
        os.utime(tmp_path / name, (0, 0))
    assert value(tmp_path, 3, AcceptedUpdate(1, ONE)) == 1.0
    client_state.sweep(tmp_path, lambda run: run == "run-1")
    assert len(list(tmp_path.iterdir())) == 4
    assert len(list((tmp_path / "run-1/a").iterdir())) == 4
