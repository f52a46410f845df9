"""
When a run ends before its rounds are through, and the version that it ends with.

By the clients' validation in committed rounds alone: each decision is a function of the history, which any
process may compute again. The evaluator's scores come a round earlier or later, and decide nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from fl_queue import metrics
from fl_queue.config import metric_choice
from fl_queue.config.run_config import RunConfig
from fl_queue.coordinator.rounds import branching
from fl_queue.errors import CheckpointError, UnknownVersion
from fl_queue.models import selection
from fl_queue.models.model_store import ModelStore
from fl_queue.protocol.records import Outcome, RoundRecord
from fl_queue.store import RunState, Store
from fl_queue.store.transactions import branches

log = logging.getLogger(__name__)

#: Records that a threshold looks at: abandoned rounds in a row are fewer.
_LAST = 10


def why_stop(store: Store, state: RunState, config: RunConfig) -> str:
    """Why a run needs no more training although it has rounds left; empty: it needs it."""
    if config.run.stop_when:
        records = store.control.history.records(state.run_id, last=_LAST)
        if has_reached(config.run.stop_when, records):
            return f"run.stop_when holds: {config.run.stop_when}"
    if config.run.patience:
        return out_of_patience(
            metric_choice.select_of(config, state.metrics),
            config.run.patience,
            store.control.history.records(state.run_id),
            state.counted_from,
        )
    return ""


def has_reached(condition: str, records: Sequence[RoundRecord]) -> bool:
    """Whether the newest committed round's validation meets ``run.stop_when``; not that of a line given up."""
    for record in reversed(records):
        if record.outcome == Outcome.restored:
            return False
        if record.outcome == Outcome.committed:
            return metrics.stop_holds(condition, metrics.finish(record.validation))
    return False


def out_of_patience(select: str, patience: int, records: Sequence[RoundRecord], since: int) -> str:
    """
    Why a run has waited long enough for a better version; empty: it has not.

    Args:
        select: As ``run.select``.
        patience: Versions in a row without a better one.
        records: The history.
        since: The first version that counts.
    """
    found: dict[int, Mapping[str, float]] = {
        record.base_version: metrics.finish(record.validation)
        for record in records
        if record.outcome == Outcome.committed and record.base_version >= since
    }
    best = metrics.best_version(select, found)
    if best is None:
        return ""
    metric = (select or ("accuracy:" if "accuracy" in found[best] else "loss:")).partition(":")[0]
    later = [version for version, has in found.items() if version > best and metric in has]
    if len(later) < patience:
        return ""
    count = f"{len(later)} version{'s' * (len(later) != 1)}"
    return f"no version has been better than {best} by {metric} for {count}"


def best_to_restore(store: Store, state: RunState, config: RunConfig) -> int | None:
    """
    The version that a run with ``run.restore_best`` has to end with.

    Returns:
        None also where the clients have validated nothing, or the newest version is the best one.
    """
    if not config.run.restore_best or state.version is None:
        return None
    best = metrics.best_version(
        metric_choice.select_of(config, state.metrics),
        selection.validation_metrics(store, state.run_id),
    )
    if best is None:
        return None
    digest = store.control.versions.get(state.run_id, best).get("digest")
    return None if digest in (None, state.digest) else best


def restore_best(store: Store, state: RunState, config: RunConfig) -> bool:
    """
    Make the best version the newest one at the end of a run with ``run.restore_best``.

    Returns:
        Whether there was one to restore; the run has changed, and is to be looked at again.

    Raises:
        UnknownVersion: Its content is gone, such as by ``model.keep_versions``.
        RunStateError: The run is signed, and this version is not.
    """
    best = best_to_restore(store, state, config)
    if best is None:
        return False
    reason = f"run.restore_best: version {best} is the best one"
    found = branching.branch(store, state, config, best, reason)
    # Before it is the newest: a run must not end with a version that nothing can be trained from.
    _bring_back(store, state, config, best)
    branches.restore_at_end(store, state, found)
    return True


def _bring_back(store: Store, state: RunState, config: RunConfig, version: int) -> None:
    """Have all of a version on the data server. Raises UnknownVersion."""
    models = _models(store, state, config)
    try:
        models.restore_version(version, config.model.codec, branching.needs_state(config))
    except CheckpointError as exc:
        log.warning("run=%s version %s cannot be restored: %s", state.run_id, version, exc)
        raise UnknownVersion(
            state.name,
            version,
            "is the best one (run.restore_best), and its content is gone: pruned (model.keep_versions), or not in "
            "the backup that the run was restored from",
        ) from exc


def keeps_checkpoints(store: Store, state: RunState, config: RunConfig) -> bool:
    """Whether this machine has the checkpoints of a run: what it lacks has been removed, and is nowhere else."""
    return _models(store, state, config).is_on_disk(state.digest)


def _models(store: Store, state: RunState, config: RunConfig) -> ModelStore:
    assert store.state_dir is not None  # A worker's connection has one, and so has a command's.
    return ModelStore(store, state.run_id, config.redis.chunk_bytes, store.state_dir)
