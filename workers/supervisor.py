"""
``fl-queue worker ROLE``: starts the RQ worker as a child and starts it again when it ends.

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
from dataclasses import replace
from types import FrameType
from typing import TYPE_CHECKING

from fl_queue import names
from fl_queue.errors import FLQueueError, StoreUnavailable
from fl_queue.site import Site
from workers.process import EXIT_REFUSED, die_with_parent, log_to_console

if TYPE_CHECKING:
    from workers.chores import Chores

log = logging.getLogger(__name__)

ROLES = ("client", "aggregator", "evaluator")
RESTART_S = 0.2
LONGEST_RESTART_S = 5.0
LIVED_S = 10.0
TICK_S = 1.0


class Supervisor:
    """
    Keeps one RQ worker running.

    Args:
        role: One of ``ROLES``.
        site: Passed on to the worker in its environment.
    """

    def __init__(self, role: str, site: Site) -> None:
        self.role = role
        self.site = replace(site, token=secrets.token_hex(8))
        self.stopping = 0
        self.child: subprocess.Popen[bytes] | None = None
        self._chores: Chores | None = None

    def run(self) -> int:
        """
        Supervise until stopped.

        Returns:
            Exit status: 0 after a stop, 2 when the worker was refused.
        """
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        pause_s = RESTART_S
        while True:
            started = time.monotonic()
            status = self._run_child()
            if self.stopping or status == EXIT_REFUSED:
                self.chores.end()
                return status if status == EXIT_REFUSED else 0
            log.warning("%s worker ended with status %s: starting it again", self.role, status)
            self._forget_worker()
            # Killed from outside, or after a while: at once. One that ends by itself gets slower.
            quick = status < 0 or time.monotonic() - started > LIVED_S
            pause_s = RESTART_S if quick else min(2 * pause_s, LONGEST_RESTART_S)
            time.sleep(pause_s)

    @property
    def chores(self) -> Chores:
        """Imported after the worker has been started: that one is in a hurry."""
        from workers.chores import chores_of

        if self._chores is None:
            self._chores = chores_of(self.role, self.site)
        return self._chores

    def _run_child(self) -> int:
        self.site = replace(
            self.site, worker=f"{self.role}-{self.site.client or 'x'}-{secrets.token_hex(4)}"
        )
        environment = {
            **os.environ,
            **self.site.to_environ(),
            "FLQ_SITE_SUPERVISOR": str(os.getpid()),
        }
        # Its own session: Ctrl-C in a terminal reaches us alone, and we decide how to stop it.
        self.child = subprocess.Popen(
            [sys.executable, "-m", f"workers.{self.role}"], env=environment, start_new_session=True
        )
        if self.stopping:
            self.child.terminate()
        ended = select.poll()
        descriptor = os.pidfd_open(self.child.pid)
        ended.register(descriptor, select.POLLIN)
        try:
            while not ended.poll(TICK_S * 1000):
                self.chores.tick()
        finally:
            os.close(descriptor)
        return self.child.wait()

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self.stopping += 1
        log.info(
            "stopping %s",
            "when the job at work is done; once more to stop now" if self.stopping == 1 else "now",
        )
        if self.child is not None and self.child.poll() is None:
            # RQ takes a second SIGTERM within a second for an echo of the first.
            self.child.send_signal(signal.SIGTERM if self.stopping == 1 else signal.SIGKILL)

    def _forget_worker(self) -> None:
        """Say that the child is dead, which we know for certain: its jobs need not wait for its lease."""
        try:
            with self.site.store() as store:
                store.control.release(names.worker(self.site.worker), self.site.token)
        except StoreUnavailable as exc:
            log.warning("%s", exc)


def main() -> int:
    """``python -m workers.supervisor ROLE``, with the site in ``FLQ_SITE_*``."""
    log_to_console()
    parser = argparse.ArgumentParser(prog="workers.supervisor", description=__doc__)
    parser.add_argument("role", choices=ROLES)
    parser.add_argument("--parent", type=int, help="end when this process ends")
    arguments = parser.parse_args()
    if arguments.parent:
        die_with_parent(arguments.parent)
    site = Site.from_environ()
    try:
        site.store().close()
    except FLQueueError as exc:
        log.error("%s", exc)
        return exc.exit_code
    return Supervisor(arguments.role, site).run()


if __name__ == "__main__":
    sys.exit(main())
