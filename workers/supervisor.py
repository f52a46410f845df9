"""
``fl-queue worker ROLE``: starts the RQ worker as a child (a pool: several) and starts it again when it ends.

In the aggregator role it also runs the healer; in the client role it clears the outbox of updates
whose rounds have ended. The first SIGTERM or Ctrl-C stops warm (the job at work is finished), the
second cold.
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
from dataclasses import replace
from types import FrameType
from typing import TYPE_CHECKING

from fl_queue.client.revocation import EXIT_REVOKED, sentence
from fl_queue.client.site import WorkerSettings
from fl_queue.common import logs, processes, state_folder
from fl_queue.common.offspring import Offspring
from fl_queue.common.own_modules import python_command
from fl_queue.errors import FLQueueError
from fl_queue.store import INTERACTIVE, complaint, exposure, is_login_refused, keyspace
from workers import EXIT_REFUSED

if TYPE_CHECKING:
    from workers.background import BackgroundTask

log = logging.getLogger(__name__)

ROLES = ("client", "aggregator", "evaluator", "pool")
RESTART_S = 0.2
LONGEST_RESTART_S = 5.0
LIVED_S = 10.0
#: Pause of a worker whose login is refused: an operator has to enrol it first.
REVOKED_RESTART_S = 60.0
TICK_S = 1.0


class _Place:
    """One worker process and what replaces it. Args: ``site``: passed on in its environment."""

    def __init__(self, role: str, site: WorkerSettings) -> None:
        self.role, self.site = role, site
        self.due_at = 0.0
        self.child: subprocess.Popen[bytes] | None = None
        self.descriptor = -1
        self._pause_s = RESTART_S

    def start(self) -> None:
        """Start the next process, under a name that no other had."""
        # A client's name and the separator that none contains: its own by an ACL pattern.
        whose = f"{self.site.client}_" if self.site.client else f"{self.role}-"
        self.site = replace(self.site, worker=f"{whose}{secrets.token_hex(4)}")
        environment = {
            **os.environ,
            **self.site.to_environ(),
            "FLQ_SITE_SUPERVISOR": str(os.getpid()),
        }
        self._started_at = time.monotonic()
        # Its own session: Ctrl-C in a terminal reaches us alone, and we decide how to stop it.
        self.child = subprocess.Popen(
            python_command("-m", f"workers.{self.role}"), env=environment, start_new_session=True
        )
        self.descriptor = os.pidfd_open(self.child.pid)

    def ended(self) -> int:
        """Its process has ended: with which status. The next one is due after a pause."""
        assert self.child is not None
        os.close(self.descriptor)
        status = self.child.wait()
        self.child = None
        # Killed from outside, or after a while: at once. One that ends by itself gets slower.
        quick = status < 0 or time.monotonic() - self._started_at > LIVED_S
        self._pause_s = RESTART_S if quick else min(2 * self._pause_s, LONGEST_RESTART_S)
        self.due_at = time.monotonic() + (
            REVOKED_RESTART_S if status == EXIT_REVOKED else self._pause_s
        )
        return status

    def send(self, signum: signal.Signals) -> None:
        """Send its process a signal, if there is one."""
        if self.child is not None and self.child.poll() is None:
            self.child.send_signal(signum)


class Supervisor:
    """
    Keeps one RQ worker running, or several.

    Args:
        role: One of ``ROLES``.
        site: Passed on to the workers in their environment.
        count: Workers at a time.
    """

    def __init__(self, role: str, site: WorkerSettings, count: int = 1) -> None:
        self.role = role
        self.site = replace(site, token=secrets.token_hex(8))
        self.stopping = 0
        self._places = [_Place(role, self.site) for _ in range(count)]
        self._chores: BackgroundTask | None = None

    def run(self) -> int:
        """
        Supervise until stopped.

        Returns:
            Exit status: 0 after a stop, 2 when a worker was refused.
        """
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        refused, offspring = False, Offspring()
        while not refused and (not self.stopping or any(place.child for place in self._places)):
            self._start_due()
            for place in self._wait():
                status = place.ended()
                # A worker that was killed could not end what its job had started.
                offspring.end(other.child.pid for other in self._places if other.child)
                refused |= status == EXIT_REFUSED
                if not self.stopping and not refused:
                    self._say_ended(place, status)
        self._try(lambda: self.chores.end())
        return EXIT_REFUSED if refused else 0

    @property
    def chores(self) -> BackgroundTask:
        """The role's task; imported after the worker has been started, which must not wait for it."""
        from workers.background import chores_of

        if self._chores is None:
            self._chores = chores_of(self.role, self.site)
        return self._chores

    def _start_due(self) -> None:
        for place in self._places:
            if place.child is None and place.due_at <= time.monotonic() and not self.stopping:
                place.start()
                if self.stopping:  # A signal came in between.
                    place.send(signal.SIGTERM)

    def _wait(self) -> list[_Place]:
        """The places whose process has ended, after a second at most; chores are done meanwhile."""
        by_descriptor = {place.descriptor: place for place in self._places if place.child}
        poll = select.poll()
        for descriptor in by_descriptor:
            poll.register(descriptor, select.POLLIN)
        due = [place.due_at for place in self._places if place.child is None]
        pause_s = min([TICK_S, *(max(0.0, at - time.monotonic()) for at in due)])
        ended = poll.poll(pause_s * 1000)
        if not ended:
            self._try(lambda: self.chores.tick())
        return [by_descriptor[descriptor] for descriptor, _ in ended]

    def _try(self, chore: Callable[[], None]) -> None:
        """Do a chore, whatever comes of it: what ends a supervisor takes its worker's training along."""
        try:
            chore()
        except Exception as exc:  # noqa: BLE001
            complaint.log(exc)
        else:
            complaint.over()

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self.stopping += 1
        log.info(
            "stopping %s",
            "when the job at work is done; once more to stop now" if self.stopping == 1 else "now",
        )
        for place in self._places:
            # RQ takes a second SIGTERM within a second for an echo of the first.
            place.send(signal.SIGTERM if self.stopping == 1 else signal.SIGKILL)

    def _say_ended(self, place: _Place, status: int) -> None:
        if status == EXIT_REVOKED:
            log.warning("%s worker: trying again in %g s", self.role, REVOKED_RESTART_S)
            return
        log.warning("%s worker ended with status %s: starting it again", self.role, status)
        self._forget_worker(place)

    def _forget_worker(self, place: _Place) -> None:
        """Release the lease of a child that is certainly dead: its jobs need not wait for it to run out."""

        def release() -> None:
            with replace(self.site).store() as store:  # Of the credentials as they are now.
                store.control.leases.release(keyspace.worker(place.site.worker), self.site.token)

        self._try(release)


def main() -> int:
    """``python -m workers.supervisor ROLE``, with the site in ``FLQ_SITE_*``."""
    logs.set_up_worker()
    parser = argparse.ArgumentParser(prog="workers.supervisor", description=__doc__)
    parser.add_argument("role", choices=ROLES)
    parser.add_argument("--processes", type=int, default=1, help="workers to keep running")
    parser.add_argument("--parent", type=int, help="end when this process ends")
    arguments = parser.parse_args()
    if arguments.parent:
        processes.die_with_parent(arguments.parent)
    site = WorkerSettings.from_environ()
    try:
        state_folder.enter(site.state_dir)
        for risk in {risk: None for url in site.urls() for risk in exposure.of_url(url)}:
            log.warning("%s; %s", risk.what, risk.fix)
        # The command that starts it waits for a line; later outages are waited out.
        site.store(INTERACTIVE).close()
    except FLQueueError as exc:
        revoked = site.credentials and is_login_refused(exc)
        log.error("%s", sentence(site) if revoked else exc)
        return exc.exit_code
    return Supervisor(arguments.role, site, arguments.processes).run()


if __name__ == "__main__":
    sys.exit(main())
