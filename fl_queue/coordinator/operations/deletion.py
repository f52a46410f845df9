"""
Deleting a run: every key on both servers, every job, and this machine's checkpoints.

A tombstone stays for a day: what a client sends that slept through all of it is removed, too. The
name is free at once; a run of the same name has another run id and meets nothing of the old one.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from fl_queue.common.paths import below
from fl_queue.coordinator.aggregator import round_records
from fl_queue.errors import RunStateError
from fl_queue.models import checkpoint, host_cache, update_archive
from fl_queue.store import RunState, Store, queries
from fl_queue.store.transactions import deletions

#: How long a tombstone is kept, and for how long everything is looked through again.
TOMBSTONE_S = 24 * 3600.0
LOOKED_AGAIN_S = 600.0


def delete(store: Store, state: RunState, state_dir: Path) -> None:
    """
    Delete a run that is not training. Killed half way, the healer goes on with it.

    Raises:
        RunStateError: It is training; cancel it first.
    """
    run = state.run_id

    deletions.mark_deleted(store, state, partial(refuse_training, state.name))
    _remove(store, [run], state_dir)
    store.control.enrolments.pins.forget(run)


def refuse_training(name: str, training: bool) -> None:
    """Refuse to delete a run that is training. Raises RunStateError."""
    if training:
        raise RunStateError(name, f"is training; stop it first with `fl-queue cancel {name}`")


def sweep(store: Store, state_dir: Path) -> None:
    """Remove keys that were written for deleted runs since; forget tombstones after a day."""
    now = store.control.now()
    tombs = deletions.tombstones(store)
    _remove(
        store,
        [run for run, deleted_at in tombs.items() if now - deleted_at < LOOKED_AGAIN_S],
        state_dir,
    )
    for run, deleted_at in tombs.items():
        store.data.results.forget(run)
        if now - deleted_at > TOMBSTONE_S:
            deletions.forget_tombstone(store, run)


def sweep_here(store: Store, state_dir: Path) -> None:
    """Remove what this machine keeps of runs that were deleted, wherever, and models it has fetched of runs that are over."""
    for run in deletions.tombstones(store):
        forget_here(state_dir, run)
    # Of an unknown run, too: what is missing is fetched once more.
    host_cache.sweep(host_cache.cache_folder(state_dir), partial(queries.is_over, store.control))


def _remove(store: Store, runs: Sequence[str], state_dir: Path) -> None:
    """Remove all that there is of some runs: each server's keys are looked through once for all of them."""
    if not runs:
        return
    deletions.remove_keys(store, runs)
    for run in runs:
        forget_here(state_dir, run)


def forget_here(state_dir: Path, run: str) -> None:
    """Remove what this machine keeps of a run: checkpoints, accepted updates, fetched models, records of secure rounds."""
    for folder in (
        checkpoint.checkpoint_folder(state_dir, run),
        below(host_cache.cache_folder(state_dir), run),
        round_records.folder_of(state_dir, run),
    ):
        shutil.rmtree(folder, ignore_errors=True)
    update_archive.forget(state_dir, run)
