"""The evaluator's job: have one version scored on the task's test set, and record its metrics. Without torch."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

from fl_queue import metrics
from fl_queue.client import trust
from fl_queue.client.asking import Ask, answer_of, score_request
from fl_queue.client.assignment import RoundModel
from fl_queue.client.site import WorkerSettings
from fl_queue.common import failpoints
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import ChunksMissing, ContentMissing, TrainingLost, UnknownRun
from fl_queue.models import host_cache
from fl_queue.models.model_store import ModelStore
from fl_queue.protocol.records import EvaluationState
from fl_queue.protocol.trainer_messages import Answer
from fl_queue.store import REDIS_ERRORS, RunState, Store, queries
from fl_queue.store.jobs.rq_types import TimedOut
from fl_queue.tasks.error_disclosure import failure_of, shown

log = logging.getLogger(__name__)


def score(run: str, version: int, ask: Ask) -> str:
    """
    Score a version on the test set, and record the result.

    Args:
        ask: Computes the metrics.

    Returns:
        The outcome, for the log.

    Raises:
        StoreUnavailable: Redis cannot be used; the job is begun again when it can.
        ContentMissing: The model is not on the data server; the healer tries again.
        TrainingLost: What computes it was lost.
    """
    site = WorkerSettings.from_environ()
    store = site.connected()
    host_cache.sweep(site.cache, partial(queries.is_over, store.control))
    config, digest = None, ""
    try:
        state = store.control.runs.get(run)
        if state is None:
            raise UnknownRun(run, list(store.control.runs.names()))
        digest = store.control.versions.get(run, version).get("digest", "")
        if not digest:
            return "there is no such version (any more)"
        segments = store.control.runs.config_segments(run)
        config = trust.segment_config(site, state, segments, state.segment)
        answer = _answer(store, site, state, digest, ask, config)
    except (TimedOut, ContentMissing, TrainingLost, *REDIS_ERRORS):
        raise
    # A failure is recorded, and holds up no round.
    except Exception as exc:
        log.exception("run=%s version=%s could not be evaluated", run, version)
        answer = Answer(outcome="failed", failure=failure_of(exc, config))
    if answer.outcome == "failed":
        store.control.evaluations.set(
            run, version, {"state": EvaluationState.failed, "reason": shown(answer.error)}, digest
        )
        return "failed"
    if answer.outcome != "done":
        raise TrainingLost(shown(answer.error), public=True)
    sums = answer.metrics
    failpoints.failpoint("version.scored")
    finished = metrics.finish(sums)
    found = {"state": EvaluationState.done, "metrics": sums, "finished": finished}
    is_kept = store.control.evaluations.set(run, version, found, digest)
    return f"evaluated: {finished}" if is_kept else "there is no such version any more"


def _answer(
    store: Store, site: WorkerSettings, state: RunState, digest: str, ask: Ask, config: RunConfig
) -> Answer:
    """
    Have the version of a digest scored.

    Raises:
        ContentMissing: The model is not on the data server.
    """
    run = state.run_id
    manifest = store.control.versions.manifest(run)
    if manifest is None:
        raise ChunksMissing(digest, None)
    models = ModelStore(store, run, config.redis.chunk_bytes, site.state_dir)
    body = models.cache.fetch(digest, manifest.nbytes)
    body.unload()
    # In the cache while it is scored, however many versions are fetched meanwhile.
    model = RoundModel(manifest, digest, bodies=[body])

    def fetch_base_part() -> Path:
        assert manifest.base is not None
        models.cache.fetch_base(manifest.base)
        return host_cache.base_path(site.cache, manifest.base)

    request = score_request(site, state, config, model)
    return answer_of(site, request, ask, lambda progress: None, fetch_base_part)
