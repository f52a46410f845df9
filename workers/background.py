"""Background tasks of a supervisor, once a second: the healer, or the cleanup of its client's outbox."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from fl_queue.client.site import WorkerSettings
from fl_queue.protocol import identifiers

if TYPE_CHECKING:
    from fl_queue.coordinator.operations.healer import Healer

SWEEP_S = 5.0


class BackgroundTask:
    """
    Nothing to do: the evaluator's. The supervisor logs what is raised, and calls again.

    Args:
        site: Options of this machine.
    """

    def __init__(self, site: WorkerSettings) -> None:
        self.site = site

    def tick(self) -> None:
        """Called every second."""

    def end(self) -> None:
        """Called when the supervisor stops."""


class HealerTask(BackgroundTask):
    """The aggregator's supervisor heals."""

    healer: Healer | None = None

    def tick(self) -> None:
        """Heal once."""
        if self.healer is None:
            from fl_queue.coordinator.operations.healer import Healer

            self.healer = Healer(self.site.store(), self.site.state_dir)
        self.healer.tick()

    def end(self) -> None:
        """Release the healer's lease."""
        if self.healer is not None:
            self.healer.leave()


class OutboxCleanup(BackgroundTask):
    """A client's supervisor, or a pool's, removes updates whose rounds have ended from the outbox."""

    swept_at = 0.0

    def tick(self) -> None:
        """Clean up, every few seconds."""
        if time.monotonic() - self.swept_at < SWEEP_S or not any(self.site.outbox.glob("*")):
            return
        from fl_queue.client import outbox, sweeping, unknown_runs

        self.swept_at = time.monotonic()
        # A short-lived connection: supervisors are idle for hours between two uses.
        # With the credentials as they are now: an operator may have enrolled the site again.
        with replace(self.site).store() as store:
            # A pool worker serves all virtual clients.
            if self.site.client:
                sweeping.sweep(store, self.site, self.site.client)
                return
            may_go = unknown_runs.may_go(store.control, self.site.state_dir)
            outbox.sweep(self.site.outbox, f"{identifiers.VIRTUAL}*", may_go)


def chores_of(role: str, site: WorkerSettings) -> BackgroundTask:
    """The chores of a role."""
    return {"aggregator": HealerTask, "client": OutboxCleanup, "pool": OutboxCleanup}.get(
        role, BackgroundTask
    )(site)
