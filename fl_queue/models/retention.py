"""
Which version is the best, and which ones are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fl_queue import metrics
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import RunStateError
from fl_queue.models import checkpoint, transfer, update_archive
from fl_queue.protocol import job_origins, message
from fl_queue.store import RunState, Store, keyspace

#: Model versions that stay on the data server: the newest, and the one clients may be reading.
ON_DATA_SERVER = 2
#: Versions that still wait for the evaluator stay too, up to this many.
WAITING_KEPT = 8


def test_metrics(store: Store, run: str) -> dict[int, dict[str, float]]:
    """Version -> finished metrics on the test set, of the versions that have been evaluated."""
    return {
        version: value["finished"]
        for version, value in sorted(store.control.evaluations(run).items())
        if value.get("state") == "done"
    }


def version_metrics(store: Store, run: str) -> dict[int, dict[str, float]]:
    """
    Version -> finished metrics: on the test set, else, with no evaluator, of the clients' validation.

    What clients have beside the version (``personal_accuracy``) they alone can tell, so it is there
    with a test set, too.
    """
    validated, tested = validation_metrics(store, run), test_metrics(store, run)
    if not tested:
        return validated
    own = {version: metrics.only_beside(found) for version, found in validated.items()}
    return {
        version: {**own.get(version, {}), **tested.get(version, {})}
        for version in sorted(own.keys() | tested.keys())
        if own.get(version) or version in tested
    }


def validation_metrics(store: Store, run: str) -> dict[int, dict[str, float]]:
    """Version -> finished metrics of the clients' validation."""
    return {
        record.base_version: metrics.finish(record.validation)
        for record in store.control.history(run)
        if record.outcome in ("committed", "evaluated") and record.validation
    }


def best_by(
    select: str,
    validated: Mapping[int, Mapping[str, float]],
    tested: Mapping[int, Mapping[str, float]],
) -> int | None:
    """
    The best version by the clients' validation; by the test set only where nothing is validated.

    A test set that has chosen a version says too much of it: what it then shows is the best of many
    draws. So the one chooses, and the other reports.

    Args:
        select: As ``run.select``.
    """
    chosen = metrics.best_version(select, validated)
    if chosen is not None or any(validated.values()):
        return chosen
    return metrics.best_version(select, tested)


def best_version(store: Store, run: str, config: RunConfig) -> int | None:
    """The version that ``run.select`` names; None when nothing has been evaluated."""
    return best_by(config.run["select"], validation_metrics(store, run), test_metrics(store, run))


def chosen_version(
    store: Store, state: RunState, config: RunConfig, version: int | None, best: bool
) -> int:
    """
    The version somebody asks for: the best one, the one they name, else the newest.

    Raises:
        RunStateError: There is none yet.
    """
    if best:
        version = best_version(store, state.run_id, config)
        if version is None:
            select = config.run["select"] or "accuracy:max"
            found = sorted(
                {name for of in version_metrics(store, state.run_id).values() for name in of}
            )
            there = f"; there is {', '.join(found)}" if found else ""
            raise RunStateError(
                state.name,
                f"no version has been evaluated by {select}{there}; wait, or start an evaluator",
            )
    chosen = state.version if version is None else version
    if chosen is None:
        raise RunStateError(state.name, "has no version yet; wait for version 0")
    return chosen


def _digests(version: Mapping[str, Any]) -> set[str]:
    """What is on the data server of a version: itself, its encoded body if clients fetch that, its state."""
    download = version.get("download") or version["digest"]
    return {version["digest"], download, *version.get("server_state", {}).values()}


def _files(version: Mapping[str, Any]) -> set[str]:
    """What is on disk of a version: itself, and the strategy's state that belongs to it."""
    return {version["digest"], *version.get("server_state", {}).values()}


def _in_training(store: Store, run: str) -> set[int]:
    """Older versions that clients are at work on, in asynchronous rounds."""
    state = store.control.run(run)
    current = store.control.round(run, state.round) if state else None
    return job_origins.versions(current) if current else set()


def prune_versions(store: Store, run: str, config: RunConfig, state_dir: Path) -> None:
    """
    Remove superseded models: chunks on the data server, checkpoints beyond ``model.keep_versions``,
    and the kept updates of rounds whose base is no longer there.
    """
    versions = store.control.versions(run)
    manifest = store.control.manifest(run)
    if not versions or manifest is None:
        return
    newest = max(versions)
    evaluations = store.control.evaluations(run)
    # A version that waits has a job; one that is not to be scored is waited for by nobody.
    waiting = {
        version
        for version in versions
        if newest - WAITING_KEPT < version and "job" in evaluations.get(version, {})
    }
    served = {version for version in versions if version > newest - ON_DATA_SERVER} | waiting
    served |= _in_training(store, run)
    digests = {digest for version in served for digest in _digests(versions[version])}
    reach = 2 * max(WAITING_KEPT, config.round["max_staleness"])
    for version in range(max(0, newest - reach), newest):
        for digest in _digests(versions[version]) - digests:
            store.data.drop_chunks(
                keyspace.model_blob(run, digest),
                message.chunk_count(manifest.nbytes, config.redis["chunk_bytes"]),
            )
    count = config.model["keep_versions"]
    if count:
        best = best_version(store, run, config)
        stay = served | {version for version in versions if version > newest - count}
        # A record may be of a version that a restored server does not list.
        stay |= {best} if best in versions else set()
        checkpoint.prune(
            transfer.checkpoint_folder(state_dir, run),
            {digest for version in stay for digest in _files(versions[version])},
        )
        # A round whose base is gone cannot be verified any more.
        rounds = {versions[version]["round"] for version in versions if version - 1 in stay}
        update_archive.prune(state_dir, run, rounds | {versions[newest]["round"]})
