"""
Export a run's numbers: TensorBoard, MLflow, CSV, JSON lines; and Prometheus.

The folder is an argument of ``fl-queue metrics`` and no field of a config: a path that comes from Redis
must not decide where a machine writes. Each of the packages is an extra, and imported on use.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fl_queue.common.extras import how_to_install
from fl_queue.common.outages import Outages
from fl_queue.common.paths import below
from fl_queue.errors import ConfigError, DataError, StoreUnavailable
from fl_queue.protocol import identifiers
from fl_queue.protocol.records import EvaluationState
from fl_queue.reporting.exporters.base import Exporter, Numbers, numbers_of
from fl_queue.store import RunState, Store, keyspace

log = logging.getLogger(__name__)

__all__ = ["KINDS", "Exporter", "Numbers", "export", "follow", "numbers_of", "open_sink"]

KINDS = ("tensorboard", "mlflow", "csv", "jsonl")
#: The longest wait for an event, and so the delay until a deletion of the run is noticed.
BLOCK_MS = 1000
#: Events that change the numbers.
_NEWS = (
    "round_committed",
    "round_abandoned",
    "round_cancelled",
    "round_evaluated",
    "version_evaluated",
)


def open_sink(kind: str, folder: Path, run: str) -> Exporter:
    """
    Open an exporter for one run below ``folder``, which is created.

    Args:
        kind: One of ``KINDS``.
        run: Run id.

    Raises:
        ConfigError: No such kind, or its package is not installed.
        DataError: The folder cannot be made.
    """
    if kind not in KINDS:
        raise ConfigError("--to", f"{kind!r} is none of {', '.join(KINDS)}")
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        if kind == "tensorboard":
            from fl_queue.reporting.exporters.tensorboard import EventFile

            return EventFile(below(folder, run))
        if kind == "mlflow":
            from fl_queue.reporting.exporters.mlflow import FileStore

            return FileStore(folder)
    except ModuleNotFoundError as exc:
        reason = f"{kind} needs a package; {how_to_install(kind)}"
        raise ConfigError("--to", reason) from exc
    from fl_queue.reporting.exporters.files import CsvFiles, JsonFiles

    return (CsvFiles if kind == "csv" else JsonFiles)(below(folder, run))


def export(store: Store, state: RunState, sink: Exporter) -> int:
    """
    Write the numbers of a run once; returns how many were new.

    Raises:
        DataError: It cannot be written.
    """
    with _writing(Path(state.run_id)):
        return sink.write(state, numbers_of(store, state.run_id))


def follow(
    store: Store, state: RunState, sink: Exporter, warn: Callable[[str], None] = log.warning
) -> Iterator[int]:
    """
    Write the numbers of a run as they come, until it has ended and all its versions are tested.

    Driven by the run's event stream. An outage of Redis is reported, and waited out.

    Args:
        warn: Reports an outage.

    Yields:
        How many numbers were new, after each writing.

    Raises:
        DataError: It cannot be written.
    """
    run, cursor, is_news = state.run_id, "", True
    outages = Outages(warn)
    while True:
        try:
            # The id is read before the numbers: an event in between is read twice, and written once.
            cursor = cursor or store.control.events.last_id(keyspace.events(run))
            current = store.control.runs.get(run)
            if current is None:
                return
            if is_news:
                yield export(store, current, sink)
            if not current.active and not _is_awaited(store, run):
                # For numbers that came after the last export.
                yield export(store, current, sink)
                return
            is_news = False
            for _, entry, event in store.control.events.read(
                {keyspace.events(run): cursor}, BLOCK_MS
            ):
                cursor = entry
                is_news |= event["event"] in _NEWS
            outages.over()
        except StoreUnavailable as exc:
            outages.wait(exc)


def _is_awaited(store: Store, run: str) -> bool:
    """Whether an evaluator is alive and has versions of the run to test."""
    waiting = any(
        value.get("state") not in tuple(EvaluationState)
        for value in store.control.evaluations.all(run).values()
    )
    return waiting and store.control.workers.is_role_alive(identifiers.EVALUATOR)


@contextmanager
def _writing(what: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        where = str(exc.filename or what)
        raise DataError(
            where, f"cannot be written: {exc.strerror or exc}; name another folder"
        ) from exc
