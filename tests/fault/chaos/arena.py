"""
The federation of a chaos run: real processes, two aggregators, and how to get hold of each part.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from fl_queue.config import run_config
from fl_queue.coordinator.rounds import lifecycle, runs
from fl_queue.store.embedded.server_pair import EmbeddedRedis
from tests.fault.chaos import checks
from tests.fault.chaos.hits import children, open_child
from tests.support.federation import Federation, wait_for

AGGREGATORS = ("aggregator", "aggregator-2")
#: Guards, not expectations: other work may have the machine.
START_S = 120.0
END_S = 300.0
SETTLE_S = 90.0


class Arena(Federation):
    """A federation with two aggregators, so that one can take over from the other."""

    def __init__(self, redis: EmbeddedRedis, folder: Path, clients: int) -> None:
        super().__init__(redis, folder, clients)
        self.start(AGGREGATORS[1])
        living = clients + 1 + len(AGGREGATORS)
        wait_for("workers", lambda: len(self.store.control.workers.living()) == living, START_S)

    def start(self, name: str) -> None:
        if name != AGGREGATORS[1]:
            super().start(name)
            return
        command = [sys.executable, "-m", "fl_queue", "worker", "aggregator"]
        command += ["--state-dir", str(self.redis.state_dir)]
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(command, stdout=log, stderr=log)

    def open(self, name: str, part: str) -> tuple[list[int], int]:
        """Descriptors of the processes of a part, outermost first; and the worker's pid."""
        supervisor = self.processes[name].pid
        workers = _below([supervisor])
        # Of an aggregator: its job's process, without one below it.
        under_worker = _below([pid for pid, _ in workers])
        trainers = _below([pid for pid, _ in under_worker])
        top = [(supervisor, os.getpid())]
        worker = workers[0][0] if workers else 0
        wanted = {
            "supervisor": top,
            "worker": workers,
            "horse": under_worker,
            "fork server": under_worker,
            "trainer": trainers,
            "all": [*top, *workers, *under_worker, *trainers],
        }
        opened = (open_child(*one) for one in wanted[part])
        return [descriptor for descriptor in opened if descriptor is not None], worker

    def repeat(self, name: str, loaded: run_config.RunConfig, rounds_each: int, starts: int) -> str:
        """An undisturbed run of so many starts of so many rounds; its id."""
        for _ in range(starts):
            state = runs.start_run(self.store, name, loaded, rounds_each)
            lifecycle.advance(self.store, state.run_id)
            self.finish(state.run_id, END_S)
        self.settle(state.run_id)
        return state.run_id

    def settle(self, run: str) -> None:
        """Wait until every version has been scored and nothing but models is on the data server."""

        def settled() -> bool:
            scored = self.store.control.evaluations.all(run).values()
            return all(value.get("state") == "done" for value in scored) and not self.leftovers(run)

        with suppress(AssertionError):
            wait_for("the run to settle", settled, SETTLE_S)

    def leftovers(self, run: str) -> list[str]:
        """Of a run on the data server."""
        versions = self.store.control.versions.all(run)
        return checks.data_leftovers(self.store.data.redis, run, versions)


def _below(parents: list[int]) -> list[tuple[int, int]]:
    """(pid, pid of its parent) of the children of processes."""
    return [(child, parent) for parent in parents for child in children(parent)]
