"""
The trainers of one worker: one for each run and segment of its config that is at work at this site.

What a trainer keeps may be lost at any moment and changes no bit, so each limit here just ends one. No Redis and no
torch here.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_queue.client.trainer.process import ForkServerProcess, OnProgress, Trainer
from fl_queue.client.trainer.serve import COMPILER
from fl_queue.common.offspring import Offspring

log = logging.getLogger(__name__)

#: A trainer that is not asked for so long ends, seconds.
IDLE_S = 900.0
#: From the end of a job until the fork server imports what its trainer needed, seconds.
_PRELOAD_S = 5.0
#: Below this a trainer is not taken for one that leaks, bytes.
_LEAK_BYTES = 512 * 2**20

#: Run id and segment of its config.
Key = tuple[str, int]


@dataclass(frozen=True)
class Limits:
    """
    When trainers end.

    Args:
        trainers: How many are kept.
        jobs: How many jobs one does; 0: any number.
        nbytes: Private memory of all that are kept, and of one; 0: any.
        idle_s: How long one is kept unused.
    """

    trainers: int = 2
    jobs: int = 0
    nbytes: int = 0
    idle_s: float = IDLE_S


class Trainers:
    """
    The trainers of a worker; the least recently used one ends first.

    To be used from the worker's main thread, but for ``stop``.

    Args:
        server: Forks them.
        limits: When they end.
        reload_file: Its content changes when the site wants fresh ones.
    """

    def __init__(
        self, server: ForkServerProcess, limits: Limits, reload_file: Path | None = None
    ) -> None:
        self._server, self._limits, self._reload_file = server, limits, reload_file
        # The orphans of a trainer become children of this process.
        self._offspring = Offspring()
        self._kept: dict[Key, Trainer] = {}
        self._second_job: dict[int, int] = {}
        self._at_work: Trainer | None = None
        self._reloaded = self._reload_token()
        self._preload_at: float | None = None
        #: Pid of the fork server that has been asked to import the compiler.
        self._preloaded_in = 0

    def start(self) -> None:
        """Start the fork server, so that the first job finds it ready."""
        self._server.start()

    def ask(
        self, key: Key, job: str, body: dict[str, Any], on_progress: OnProgress
    ) -> dict[str, Any]:
        """The answer of a run's trainer; arguments and errors as of ``Trainer.ask``."""
        trainer = self._of(key)
        self._at_work = trainer
        try:
            return trainer.ask(job, body, on_progress)
        finally:
            # Last: until then a second signal must find a trainer at work, and not raise in the middle.
            try:
                if trainer.is_ended:
                    self._forget(key)
            finally:
                self._at_work = None

    def stop(self) -> None:
        """Have the trainer that is at work answer soon; from any thread, or a signal handler."""
        trainer = self._at_work
        if trainer is not None:
            trainer.stop()

    @property
    def is_upgraded(self) -> bool:
        """Whether the installed files are of another version than this process, which can start no trainer."""
        return self._server.is_of_other_version

    @property
    def is_asking(self) -> bool:
        """Whether a trainer is at work."""
        return self._at_work is not None

    def tend(self, is_needed: Callable[[str], bool] = lambda run: True) -> None:
        """
        End trainers that are not needed; between two jobs, every few seconds.

        Args:
            is_needed: Whether a run still is; asked about those that were idle for a while.
        """
        now = time.monotonic()
        for key, trainer in list(self._kept.items()):
            if not trainer.settle():
                self._forget(key)
                continue
            idle_s = now - trainer.used_at
            if idle_s > self._limits.idle_s or not is_needed(key[0]):
                self._end(key, "it is not needed any more")
            elif why := self._too_much(trainer):
                self._end(key, why)
        self._make_room(len(self._kept) + 1)
        self._offspring.end([self._server.pid])
        if self._preload_at is not None and now > self._preload_at:
            self._preload_at, self._preloaded_in = None, self._server.pid
            self._server.preload(COMPILER)

    def reap(self) -> None:
        """Forget processes that a job has started and that have ended; from any thread."""
        self._offspring.reap([self._server.pid])

    def close(self) -> None:
        """End all of them, and the fork server."""
        for key in list(self._kept):
            self._end(key, "")
        self._server.end()
        self._offspring.end()

    def end(self, key: Key) -> None:
        """End the trainer of a run, if there is one: it cannot be trusted."""
        if key in self._kept:
            self._end(key, "its answer cannot be used")

    @property
    def pids(self) -> dict[Key, int]:
        """Pids of the trainers that are kept."""
        return {key: trainer.pid for key, trainer in self._kept.items()}

    def _of(self, key: Key) -> Trainer:
        """The trainer of a run: the one that is kept, or a new one."""
        self._follow_reload()
        for other in [other for other in self._kept if other[0] == key[0] and other != key]:
            self._end(other, "the run's config has changed")
        found = self._kept.get(key)
        if found is not None:
            is_idle = found.settle()
            self._offspring.end([self._server.pid])  # Of its last job.
            if not is_idle:
                self._forget(key)
                found = None
        if found is not None and (why := self._too_much(found)):
            self._end(key, why)
            found = None
        # The last one is the one that was used last.
        if found is not None:
            self._kept[key] = self._kept.pop(key)
        else:
            self._make_room(self._limits.trainers)
            found = self._kept[key] = Trainer(self._server, self._server.fork())
        return found

    def _too_much(self, trainer: Trainer) -> str:
        """Why a trainer is not to have another job; empty: it may."""
        idle, limits = trainer.idle, self._limits
        if idle.jobs == 2:
            self._second_job.setdefault(trainer.pid, idle.private_bytes)
        if limits.jobs and idle.jobs >= limits.jobs:
            return f"it has done {idle.jobs} jobs"
        if limits.nbytes and idle.private_bytes > limits.nbytes:
            return f"it has {_mib(idle.private_bytes)}, and may have {_mib(limits.nbytes)}"
        most = 2 * self._second_job.get(trainer.pid, idle.private_bytes) + _LEAK_BYTES
        if idle.private_bytes > most:
            return f"it has grown to {_mib(idle.private_bytes)}"
        is_preloaded = self._preloaded_in == self._server.pid
        if idle.has_compiler and not is_preloaded and self._preload_at is None:
            self._preload_at = time.monotonic() + _PRELOAD_S
        return ""

    def _make_room(self, fewer_than: int) -> None:
        """End the least recently used ones. Args: ``fewer_than``: how many may not be reached."""
        while self._kept and (
            len(self._kept) >= fewer_than
            or (self._limits.nbytes and self._total() > self._limits.nbytes)
        ):
            self._end(next(iter(self._kept)), "another run needs its place")

    def _total(self) -> int:
        return sum(trainer.idle.private_bytes for trainer in self._kept.values())

    def _follow_reload(self) -> None:
        token = self._reload_token()
        if token == self._reloaded:
            return
        self._reloaded = token
        for key in list(self._kept):
            self._end(key, "the site reloads its data")

    def _reload_token(self) -> bytes:
        try:
            return self._reload_file.read_bytes()[:64] if self._reload_file else b""
        except OSError:
            return b""

    def _end(self, key: Key, why: str) -> None:
        if why:
            log.info("run=%s its training process ends: %s", key[0], why)
        self._kept[key].kill()
        self._forget(key)

    def _forget(self, key: Key) -> None:
        """Forget a trainer that has ended, and end what it has left."""
        trainer = self._kept.pop(key)
        self._second_job.pop(trainer.pid, None)
        self._server.forget(trainer.pid)
        self._offspring.end([self._server.pid])


def _mib(nbytes: int) -> str:
    return f"{nbytes / 2**20:.0f} MiB"
