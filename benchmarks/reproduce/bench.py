"""
Private servers and the workers of a simulation, which stay for all jobs; and one job on them.

A run that was interrupted goes on from its newest version: by then it is a run like any other.
"""

from __future__ import annotations

import json
import os
import statistics
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

from rich.console import Console

from benchmarks.reproduce.jobs import Job, Measured
from fl_queue import Run
from fl_queue.client.site import WorkerSettings
from fl_queue.config import loading
from fl_queue.config.run_config import RunConfig
from fl_queue.coordinator.operations import deletion
from fl_queue.coordinator.rounds import runs
from fl_queue.errors import RunFailed, RunStateError, UnknownRun
from fl_queue.experiments import local_workers
from fl_queue.models import selection
from fl_queue.reporting import rounds_table
from fl_queue.store import RunState, Store
from fl_queue.store.embedded import server_pair
from fl_queue.tasks.loading import load_task
from fl_queue.tasks.partition_labels import labels_of

CONFIG = "mnist-2nn-100"
#: Pool processes: the results depend on none of it, and the seconds should be those of two cores.
PROCESSES = 2
#: Seconds between two looks at whether the target has been reached.
LOOK_S = 2.0


def check_data(data: str, source: str) -> None:
    """
    Read the training labels and the test set; what the folder lacks is downloaded into it.

    Args:
        data: Folder of the full set; empty: the task's own.
        source: ``full`` or ``excerpt``.

    Raises:
        DataError: The files are missing and cannot be downloaded; the message names them and their folder.
    """
    loaded = _load({"data.source": source, "data.dir": data})
    labels_of(loaded, data)
    load_task(loaded.run.task, loaded).test_data(data)


class Bench:
    """
    Where jobs are run; a context manager.

    Args:
        folder: Of the servers and of what workers keep; one that was used before is gone on with.
        data: Folder of the full MNIST; empty: the task's own.
    """

    def __init__(self, folder: Path, data: str) -> None:
        self._folder, self._data = folder, data
        self._ours = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            self.redis = undo.enter_context(server_pair.start(self._folder))
            site = WorkerSettings(self.redis.url, self.redis.blob_url, self._folder)
            self.store: Store = undo.enter_context(site.store())
            wanted = local_workers.missing_workers(self.store, self._config(), site)
            logs = self._folder / "logs"
            undo.enter_context(
                local_workers.workers(self.store, wanted, logs, Console(stderr=True))
            )
            self._ours = undo.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ours.close()

    def measure(self, job: Job) -> Measured:
        """
        Run a job to its end, or go on with what was begun of it.

        A run that failed, as one that diverged does, has the versions it came to.

        Raises:
            RunFailed: It was cancelled.
        """
        state = self._known(job)
        loads: list[float] = []
        if state is None or not self._is_done(job, state):
            with self._begin(job, state) as run:
                self._await(job, run, loads)
        state = runs.find_run(self.store, job.key)
        return self._measured(state.run_id, statistics.median(loads) if loads else None)

    def forget(self, job: Job) -> None:
        """Delete a job's run: its result is kept elsewhere."""
        if state := self._known(job):
            deletion.delete(self.store, state, self._folder)

    def _config(self) -> RunConfig:
        return _load({"clients.processes": PROCESSES})

    def _known(self, job: Job) -> RunState | None:
        try:
            return runs.find_run(self.store, job.key)
        except UnknownRun:
            return None

    def _is_done(self, job: Job, state: RunState) -> bool:
        return state.state == "failed" or (
            not state.active
            and ((state.version or 0) >= job.rounds or self._is_reached(job, state.run_id))
        )

    def _begin(self, job: Job, state: RunState | None) -> Run:
        return Run.start(
            CONFIG,
            name=job.key,
            rounds=job.rounds - (state.version or 0 if state else 0),
            settings={**job.settings, "data.dir": self._data, "clients.processes": PROCESSES},
            redis_url=self.redis.url,
            blob_url=self.redis.blob_url,
            state_dir=self._folder,
            quiet=True,
        )

    def _await(self, job: Job, run: Run, loads: list[float]) -> None:
        while True:
            loads.append(os.getloadavg()[0])
            try:
                run.wait(LOOK_S, quiet=True)
            except TimeoutError:
                if self._is_reached(job, run.run_id):
                    with suppress(RunStateError):  # It has just ended by itself.
                        run.cancel()
                    return
            except RunFailed:
                if run.state.state != "failed":
                    raise
                return
            else:
                return

    def _is_reached(self, job: Job, run: str) -> bool:
        return job.target is not None and any(
            accuracy >= job.target for accuracy in self._accuracy(run).values()
        )

    def _accuracy(self, run: str) -> dict[int, float]:
        tested = selection.test_metrics(self.store, run)
        return {version: finished["accuracy"] for version, finished in tested.items()}

    def _measured(self, run: str, load: float | None) -> Measured:
        history = self.store.control.history.records(run)
        seconds: dict[int, float] = {}
        total = 0.0
        for record in history:
            if record.purpose == "train":
                total += record.elapsed_s
                if record.version is not None:
                    seconds[record.version] = total
        validation = {
            version: finished["accuracy"]
            for version, finished in rounds_table.validation(history).items()
            if "accuracy" in finished
        }
        return Measured(self._accuracy(run), validation, seconds, load)


def _load(settings: dict[str, object]) -> RunConfig:
    return loading.load(
        CONFIG, tuple(f"{name}={json.dumps(value)}" for name, value in settings.items())
    )
