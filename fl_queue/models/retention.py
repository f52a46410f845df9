"""Retention: superseded versions are removed from the data server and from this machine's disk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fl_queue.config.run_config import RunConfig
from fl_queue.models import checkpoint, update_archive
from fl_queue.models.model_store import ModelStore
from fl_queue.models.selection import best_version
from fl_queue.protocol import job_origins
from fl_queue.store import RunState, Store

#: Model versions that stay on the data server: the newest, and the one that clients may be reading.
ON_DATA_SERVER = 2
#: Versions that still wait for the evaluator stay too, up to this many.
WAITING_KEPT = 8


def prune_versions(models: ModelStore, config: RunConfig) -> None:
    """
    Remove superseded models, and the kept updates of rounds whose base is removed.

    Chunks are removed from the data server, and checkpoints beyond ``model.keep_versions`` from the disk.

    Args:
        config: The run's.
    """
    store, run = models.store, models.run
    versions = store.control.versions.all(run)
    manifest = store.control.versions.manifest(run)
    if not versions or manifest is None:
        return
    newest = max(versions)
    evaluations = store.control.evaluations.all(run)
    # Only a version with a job waits for its score.
    waiting = {
        version
        for version in versions
        if newest - WAITING_KEPT < version and "job" in evaluations.get(version, {})
    }
    served = {version for version in versions if version > newest - ON_DATA_SERVER} | waiting
    served |= _in_training(store, run)
    digests = {digest for version in served for digest in _chunked_digests(versions[version])}
    reach = 2 * max(WAITING_KEPT, config.round.max_staleness)
    for version in range(max(0, newest - reach), newest):
        for digest in _chunked_digests(versions[version]) - digests:
            models.drop(digest, manifest.nbytes)
    state = store.control.runs.get(run)
    if config.model.keep_versions and state is not None:
        stay = served | kept_versions(store, state, config)
        on_disk = {digest for version in stay for digest in _checkpoint_digests(versions[version])}
        checkpoint.prune(models.folder, on_disk)
        # A round whose base is gone cannot be verified any more.
        rounds = {versions[version]["round"] for version in versions if version - 1 in stay}
        update_archive.prune(models.state_dir, run, rounds | {versions[newest]["round"]})


def kept_versions(store: Store, state: RunState, config: RunConfig) -> set[int]:
    """Versions whose checkpoints are kept by ``model.keep_versions``: the newest, the best, and tagged ones; all of an analysis to verify."""
    versions, count = store.control.versions.all(state.run_id), config.model.keep_versions
    analysis = config.analysis
    # Without the states in between nothing of a fit could be verified; trees, whose states are large, have many.
    if not count or (analysis is not None and analysis.has_budget and config.keeps_answers):
        return set(versions)
    newest = max(versions, default=-1)
    best = best_version(store, state.run_id, config)
    # A record or a tag may name a version that a restored server does not list.
    named = {best, *state.tags.values()}
    return {version for version in versions if version > newest - count or version in named}


def _chunked_digests(version: Mapping[str, Any]) -> set[str]:
    """Digests on the data server of a version: itself, its encoded body if clients fetch that, its state."""
    download = version.get("download") or version["digest"]
    return {version["digest"], download, *version.get("server_state", {}).values()}


def _checkpoint_digests(version: Mapping[str, Any]) -> set[str]:
    """Digests of a version's checkpoints: itself, and the strategy's state that belongs to it."""
    return {version["digest"], *version.get("server_state", {}).values()}


def _in_training(store: Store, run: str) -> set[int]:
    """Older versions that clients are training from, in asynchronous rounds."""
    state = store.control.runs.get(run)
    current = store.control.rounds.get(run, state.round) if state else None
    return job_origins.versions(current) if current else set()
