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
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import FrameType

from fl_queue import names, outbox, rounds
from fl_queue.errors import FLQueueError, StoreUnavailable
from fl_queue.heal import TICK_S, Healer
from fl_queue.site import Site
from fl_queue.store import Store
from workers.process import die_with_parent, log_to_console
from workers.rqworker import EXIT_REFUSED

log = logging.getLogger(__name__)

ROLES = ("client", "aggregator", "evaluator")
RESTART_S = 0.2
LONGEST_RESTART_S = 5.0
LIVED_S = 10.0
SWEEP_S = 5.0


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

    def run(self) -> int:
        """
        Supervise until stopped.

        Returns:
            Exit status: 0 after a stop, 2 when the worker was refused.
        """
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        chores = self._chores()
        pause_s = RESTART_S
        while True:
            started = time.monotonic()
            status = self._run_child(chores)
            if self.stopping or status == EXIT_REFUSED:
                self._end_chores()
                return status if status == EXIT_REFUSED else 0
            log.warning("%s worker ended with status %s: starting it again", self.role, status)
            self._forget_worker()
            # Killed from outside, or after a while: at once. One that ends by itself gets slower.
            quick = status < 0 or time.monotonic() - started > LIVED_S
            pause_s = RESTART_S if quick else min(2 * pause_s, LONGEST_RESTART_S)
            time.sleep(pause_s)

    def _run_child(self, chores: Callable[[], None]) -> int:
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
                chores()
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
            with self._connected() as store:
                store.control.release(names.worker(self.site.worker), self.site.token)
        except StoreUnavailable as exc:
            log.warning("%s", exc)

    def _chores(self) -> Callable[[], None]:
        if self.role == "aggregator":
            self.healer: Healer | None = None
            return self._heal
        if self.role == "client":
            self._swept_at = time.monotonic()
            return self._sweep
        return lambda: None

    def _heal(self) -> None:
        try:
            if self.healer is None:
                self.healer = Healer(self.site.store(), self.site.state_dir)
            self.healer.tick()
        except StoreUnavailable as exc:
            log.warning("healer: %s", exc)

    def _sweep(self) -> None:
        if time.monotonic() - self._swept_at < SWEEP_S or not any(self.site.outbox.glob("*")):
            return
        self._swept_at = time.monotonic()
        try:
            with self._connected() as store:
                outbox.sweep(
                    self.site.outbox,
                    self.site.client,
                    partial(rounds.has_ended, store.control),
                )
        except StoreUnavailable as exc:
            log.warning("outbox: %s", exc)

    def _end_chores(self) -> None:
        healer = getattr(self, "healer", None)
        if healer is not None:
            try:
                healer.leave()
            except StoreUnavailable as exc:
                log.warning("healer: %s", exc)

    def _connected(self) -> _Connected:
        return _Connected(self.site)


class _Connected:
    """A short-lived store: supervisors are idle for hours between two uses."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def __enter__(self) -> Store:
        self._store = self._site.store()
        return self._store

    def __exit__(self, *exc: object) -> None:
        self._store.close()


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
