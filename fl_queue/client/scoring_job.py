"""The evaluator's job: score one version on the task's test set, and record its metrics."""

from __future__ import annotations

import logging

from fl_queue import metrics
from fl_queue.client import local_update, trust
from fl_queue.client.site import WorkerSettings
from fl_queue.common import failpoints
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import ChunksMissing, ContentMissing, DataError, UnknownRun
from fl_queue.models.model_store import ModelStore
from fl_queue.protocol import identifiers, tensor_layout
from fl_queue.protocol.base_part import missing
from fl_queue.protocol.records import EvaluationState, Sums
from fl_queue.store import REDIS_ERRORS, RunState, Store
from fl_queue.store.jobs.rq_types import TimedOut
from fl_queue.tasks.context import ClientContext
from fl_queue.tasks.error_disclosure import disclosed
from fl_queue.tasks.loading import load_task

log = logging.getLogger(__name__)


def score(run: str, version: int) -> str:
    """
    Score a version on the test set, and record the result.

    Returns:
        The outcome, for the log.

    Raises:
        StoreUnavailable: Redis cannot be used; the job is begun again when it can.
        ContentMissing: The model is not on the data server; the healer tries again.
    """
    site = WorkerSettings.from_environ()
    store = site.connect()
    config = None
    try:
        state = store.control.runs.get(run)
        if state is None:
            raise UnknownRun(run, list(store.control.runs.names()))
        segments = store.control.runs.config_segments(run)
        config = trust.segment_config(site, state, segments, state.segment)
        sums = _sums(store, site, state, version, config)
    except (TimedOut, ContentMissing, *REDIS_ERRORS):
        raise
    # The task is its owner's code and may raise anything; a failure is recorded, and holds up no round.
    except Exception as exc:
        log.exception("run=%s version=%s could not be evaluated", run, version)
        store.control.evaluations.set(
            run, version, {"state": EvaluationState.failed, "reason": disclosed(exc, config)}
        )
        return "failed"
    failpoints.failpoint("version.scored")
    finished = metrics.finish(sums)
    store.control.evaluations.set(
        run, version, {"state": EvaluationState.done, "metrics": sums, "finished": finished}
    )
    return f"evaluated: {finished}"


def _sums(
    store: Store, site: WorkerSettings, state: RunState, version: int, config: RunConfig
) -> Sums:
    run = state.run_id
    folder = site.data_folder(config)
    task = load_task(config.run.task, config, site.allow, folder)
    data = task.test_data(folder)
    if data is None:
        raise DataError(
            "test data",
            "the task has none; override Task.test_data, or stop the evaluator",
            public=True,
        )
    manifest = store.control.versions.manifest(run)
    entry = store.control.versions.all(run)[version]
    if manifest is None:
        raise ChunksMissing(entry["digest"], None)
    models = ModelStore(store, run, config.redis.chunk_bytes, site.state_dir)
    body = models.fetch(entry["digest"], manifest)
    context = _context(state, site, config)
    arrays = tensor_layout.views(manifest, body)

    def fetch_base_part() -> memoryview:
        assert manifest.base is not None
        if not manifest.base.is_published:
            raise missing(manifest.base)
        return models.cache.fetch_base(manifest.base).view

    return local_update.evaluate_version(task, manifest, arrays, data, context, fetch_base_part)


def _context(state: RunState, site: WorkerSettings, config: RunConfig) -> ClientContext:
    return ClientContext.of(
        config,
        client=identifiers.EVALUATOR,
        run=state.name,
        round_number=1,
        data_dir=site.data_folder(config),
        device=site.device,
        threads=site.threads,
        loader_workers=site.loader_workers,
    )
