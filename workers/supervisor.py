"""
``fl-queue worker ROLE``: start the RQ worker as a child (a pool: several), and restart it when it ends.

In the aggregator role it also runs the healer; in the client role it removes updates of ended rounds
from the outbox. The first SIGTERM or Ctrl-C finishes the current job, the second ends it.
"""

from __future__ import annotations

import argparse
import logging
import os
import secrets
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import FrameType
from typing import TYPE_CHECKING

from fl_queue.client.revocation import EXIT_REVOKED, sentence
from fl_queue.client.site import WorkerSettings
from fl_queue.common import collector, logs, processes, state_folder, telemetry
from fl_queue.common.offspring import Offspring
from fl_queue.common.own_modules import python_command
from fl_queue.errors import FLQueueError
from fl_queue.store import exposure, keyspace
from fl_queue.store.timeouts import INTERACTIVE
from workers import EXIT_REFUSED, HELD

if TYPE_CHECKING:
    from workers.background import BackgroundTask

log = logging.getLogger(__name__)

ROLES = ("client", "aggregator", "evaluator", "pool")
RESTART_S = 0.2
MAX_RESTART_S = 5.0
LIVED_S = 10.0
#: Pause of a worker whose login is refused: an operator has to enrol it first.
REVOKED_RESTART_S = 60.0
TICK_S = 1.0


@dataclass(frozen=True)
class _Child:
    """
    A started worker process.

    Args:
        process: The process.
        descriptor: Its pidfd, readable when the process has ended.
        started_at: Monotonic time of the start, seconds.
    """

    process: subprocess.Popen[bytes]
    descriptor: int
    started_at: float


class _WorkerSlot:
    """
    Slot for one worker process at a time.

    Args:
        role: One of ``ROLES``.
        site: Passed on to the process in its environment.
    """

    def __init__(self, role: str, site: WorkerSettings) -> None:
        self.role, self.site = role, site
        #: Descriptor of the pipe at which a process that is started waits; None: it does not wait.
        self.held: int | None = None
        self.due_at = 0.0
        self.child: _Child | None = None
        self._pause_s = RESTART_S

    def start(self) -> None:
        """Start the next process, under a new name."""
        # The ACL pattern of a client needs its name and a separator that no name contains.
        whose = f"{self.site.client}_" if self.site.client else f"{self.role}-"
        self.site = replace(self.site, worker=f"{whose}{secrets.token_hex(4)}")
        environment = {
            **os.environ,
            **self.site.to_environ(),
            "FLQ_SITE_SUPERVISOR": str(os.getpid()),
        }
        held = () if self.held is None else (self.held,)
        environment[HELD] = str(self.held) if held else ""
        started_at = time.monotonic()
        # In a session of its own, so that Ctrl-C in a terminal reaches the supervisor alone.
        process = subprocess.Popen(
            python_command("-m", f"workers.{self.role}"),
            env=environment,
            start_new_session=True,
            pass_fds=held,
        )
        self.child = _Child(process, os.pidfd_open(process.pid), started_at)

    def reap(self, child: _Child) -> int:
        """Empty the slot of an ended process, and schedule the next one. Returns the exit status."""
        os.close(child.descriptor)
        status = child.process.wait()
        self.child = None
        # A process that was killed or that lived long is replaced at once, others ever more slowly.
        quick = status < 0 or time.monotonic() - child.started_at > LIVED_S
        self._pause_s = RESTART_S if quick else min(2 * self._pause_s, MAX_RESTART_S)
        self.due_at = time.monotonic() + (
            REVOKED_RESTART_S if status == EXIT_REVOKED else self._pause_s
        )
        return status

    def send(self, signum: signal.Signals) -> None:
        """Send a signal to the process, if it runs."""
        if self.child is not None and self.child.process.poll() is None:
            self.child.process.send_signal(signum)


class Supervisor:
    """
    Keep one or several RQ workers running.

    Args:
        role: One of ``ROLES``.
        site: Passed on to the workers in their environment.
        count: Number of workers.
    """

    def __init__(self, role: str, site: WorkerSettings, count: int = 1) -> None:
        self.role = role
        self.site = replace(site, token=secrets.token_hex(8))
        self.stopping = 0
        self._slots = [_WorkerSlot(role, self.site) for _ in range(count)]
        self._chores: BackgroundTask | None = None

    def begin(self, check: Callable[[], None]) -> None:
        """
        Start the workers, which import what they need meanwhile, and let them go on once a check has passed.

        Raises:
            FLQueueError: It has not; the workers are gone.
        """
        mine, theirs = os.pipe()[::-1]
        try:
            for slot in self._slots:
                slot.held = theirs
                slot.start()
                slot.held = None
            check()
            os.write(mine, bytes(len(self._slots)))
        except BaseException:
            for slot in self._slots:
                slot.send(signal.SIGKILL)
                if slot.child is not None:
                    slot.reap(slot.child)
            raise
        finally:
            os.close(mine)
            os.close(theirs)

    def run(self) -> int:
        """
        Supervise until stopped.

        Returns:
            Exit status: 0 after a stop, 2 when a worker was refused.
        """
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        refused, offspring = False, Offspring()
        while not refused and (not self.stopping or any(slot.child for slot in self._slots)):
            self._start_due()
            for slot, child in self._wait():
                status = slot.reap(child)
                # A killed worker cannot end the processes of its job.
                offspring.end(other.child.process.pid for other in self._slots if other.child)
                refused |= status == EXIT_REFUSED
                if not self.stopping and not refused:
                    self._report_end(slot, status)
        self._try(lambda: self.chores.end())
        return EXIT_REFUSED if refused else 0

    @property
    def chores(self) -> BackgroundTask:
        """Background task of the role, imported after the start of the worker to not delay it."""
        from workers.background import chores_of

        if self._chores is None:
            self._chores = chores_of(self.role, self.site)
        return self._chores

    def _start_due(self) -> None:
        for slot in self._slots:
            if slot.child is None and slot.due_at <= time.monotonic() and not self.stopping:
                slot.start()
                if self.stopping:  # A signal arrived during the start.
                    slot.send(signal.SIGTERM)

    def _wait(self) -> list[tuple[_WorkerSlot, _Child]]:
        """Wait a second at most for processes to end; run the background task when none has."""
        by_descriptor = {
            slot.child.descriptor: (slot, slot.child) for slot in self._slots if slot.child
        }
        poll = select.poll()
        for descriptor in by_descriptor:
            poll.register(descriptor, select.POLLIN)
        due = [slot.due_at for slot in self._slots if slot.child is None]
        pause_s = min([TICK_S, *(max(0.0, at - time.monotonic()) for at in due)])
        ended = poll.poll(pause_s * 1000)
        if not ended:
            self._try(lambda: self.chores.tick())
        return [by_descriptor[descriptor] for descriptor, _ in ended]

    def _try(self, chore: Callable[[], None]) -> None:
        """Run a chore and report its errors; an error must not end the supervisor, and so the training."""
        from fl_queue.store import error_log

        try:
            chore()
        except Exception as exc:  # noqa: BLE001
            error_log.write(exc)
        else:
            error_log.recovered()

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self.stopping += 1
        log.info(
            "stopping %s",
            "when the job at work is done; once more to stop now" if self.stopping == 1 else "now",
        )
        for slot in self._slots:
            # RQ ignores a second SIGTERM within a second as an echo of the first.
            slot.send(signal.SIGTERM if self.stopping == 1 else signal.SIGKILL)

    def _report_end(self, slot: _WorkerSlot, status: int) -> None:
        if status == EXIT_REVOKED:
            log.warning("%s worker: trying again in %g s", self.role, REVOKED_RESTART_S)
            return
        log.warning("%s worker ended with status %s: starting it again", self.role, status)
        self._release_lease(slot)

    def _release_lease(self, slot: _WorkerSlot) -> None:
        """Release the lease of a dead child, so that its jobs are taken before the lease expires."""

        def release() -> None:
            with replace(self.site).store() as store:  # Reads the current credentials.
                store.control.leases.release(keyspace.worker(slot.site.worker), self.site.token)

        self._try(release)


def main() -> int:
    """``python -m workers.supervisor ROLE``, with the site in ``FLQ_SITE_*``."""
    collector.started()
    telemetry.let_in()
    logs.set_up_worker()
    parser = argparse.ArgumentParser(prog="workers.supervisor", description=__doc__)
    parser.add_argument("role", choices=ROLES)
    parser.add_argument("--processes", type=int, default=1, help="workers to keep running")
    parser.add_argument("--parent", type=int, help="end when this process ends")
    arguments = parser.parse_args()
    if arguments.parent:
        processes.die_with_parent(arguments.parent)
    site = WorkerSettings.from_environ()
    supervisor = Supervisor(arguments.role, site, arguments.processes)
    try:
        state_folder.enter(site.state_dir)
        supervisor.begin(lambda: _look_at_servers(site))
    except FLQueueError as exc:
        log.error("%s", sentence(site) if site.credentials and _is_refused(exc) else exc)
        return exc.exit_code
    return supervisor.run()


def _look_at_servers(site: WorkerSettings) -> None:
    """Warn of risky connections, and see that both servers are fit. Raises StoreUnavailable, ConfigError."""
    for risk in {risk: None for url in site.urls() for risk in exposure.of_url(url)}:
        log.warning("%s; %s", risk.what, risk.fix)
    # The starting command waits for a line, so an outage is an error here; later ones are waited out.
    site.store(INTERACTIVE).close()


def _is_refused(error: FLQueueError) -> bool:
    from fl_queue.store import is_login_refused

    return is_login_refused(error)


if __name__ == "__main__":
    sys.exit(main())
