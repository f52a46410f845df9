"""
A run's numbers where people look at such: TensorBoard, MLflow, CSV, JSON lines; and Prometheus.

Written by whoever runs ``fl-queue metrics``, into a folder of that machine: no config names a folder,
since a path that comes from Redis must not decide where a machine writes. Each of the packages is an
extra, and imported when it is asked for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fl_queue.common.extras import how_to_install
from fl_queue.common.outages import Outages
from fl_queue.common.paths import below
from fl_queue.errors import ConfigError, DataError, StoreUnavailable
from fl_queue.models import selection
from fl_queue.protocol import identifiers
from fl_queue.reporting import curves, rounds_table
from fl_queue.reporting.curves import Point
from fl_queue.reporting.rounds_table import RoundRow
from fl_queue.store import RunState, Store, keyspace

log = logging.getLogger(__name__)

KINDS = ("tensorboard", "mlflow", "csv", "jsonl")
#: The longest wait for an event: how late it is seen that a run was deleted, or an evaluator died.
BLOCK_MS = 1000
#: Events after which there are other numbers than before.
_NEWS = (
    "round_committed",
    "round_abandoned",
    "round_cancelled",
    "round_evaluated",
    "version_evaluated",
)


@dataclass(frozen=True)
class Numbers:
    """
    What a run has to tell, at one moment.

    Args:
        rows: The rounds, as ``fl-queue history`` has them.
        points: Every number, as ``curves`` has them.
    """

    rows: list[RoundRow]
    points: list[Point]


class Exporter(Protocol):
    """Where a run's numbers go. What is there already is not written again."""

    def write(self, state: RunState, numbers: Numbers) -> int:
        """
        Write what is not there yet; returns how many numbers were new.

        Raises:
            OSError: It cannot be written.
        """


def open_sink(kind: str, folder: Path, run: str) -> Exporter:
    """
    A place for one run's numbers below ``folder``, which is made.

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


def numbers_of(store: Store, run: str) -> Numbers:
    """What a run has to tell now."""
    records, tested = store.control.history.records(run), selection.test_metrics(store, run)
    rows = rounds_table.rows(records, tested, store.control.receipts.late_counts(run))
    return Numbers(rows, curves.points(records, tested))


def export(store: Store, state: RunState, sink: Exporter) -> int:
    """
    Write what a run has to tell now; returns how many numbers were new.

    Raises:
        DataError: It cannot be written.
    """
    with _writing(Path(state.run_id)):
        return sink.write(state, numbers_of(store, state.run_id))


def follow(
    store: Store, state: RunState, sink: Exporter, say: Callable[[str], None] = log.warning
) -> Iterator[int]:
    """
    Write what a run has to tell, and go on as it has more, until it has ended and been evaluated.

    Driven by the run's event stream. An outage of Redis is said and waited out.

    Yields:
        How many numbers were new, after each writing.

    Raises:
        DataError: It cannot be written.
    """
    run, cursor, is_news = state.run_id, "", True
    outages = Outages(say)
    while True:
        try:
            # The id before the numbers: what happens in between is told twice, and written once.
            cursor = cursor or store.control.events.last_id(keyspace.events(run))
            current = store.control.runs.get(run)
            if current is None:
                return
            if is_news:
                yield export(store, current, sink)
            if not current.active and not _is_awaited(store, run):
                # What came between the numbers and this look.
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
    """Whether an evaluator is at work on a version of the run."""
    waiting = any(
        value.get("state") not in ("done", "failed")
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
