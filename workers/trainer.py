"""
The fork server of a worker, and the trainers that it forks: ``python -m workers.trainer``, started by a worker.

torch is imported in the fork server, with one thread and nothing run, so that trainers start at once and safely. Task
code is imported in trainers only. No Redis: the environment names none.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from typing import Any

from fl_queue.client.resident import Resident
from fl_queue.client.site import WorkerSettings
from fl_queue.client.trainer import fork_server
from fl_queue.client.trainer.serve import Reply
from fl_queue.common import logs
from fl_queue.protocol.trainer_messages import Answer, Progress, Request
from fl_queue.tasks.error_disclosure import failure_of
from fl_queue.training import determinism, stopping

log = logging.getLogger(__name__)

#: On a machine that several share, training gives way to leases, merging and restarts.
NICENESS = 10


class TrainerHandler:
    """``Resident`` behind a socket: plain values in and out."""

    def __init__(self) -> None:
        self._resident = Resident(WorkerSettings.from_environ())

    def handle(self, body: dict[str, Any], report: Callable[[dict[str, Any]], None]) -> Reply:
        """Answer a request. Raises MessageError when it is none."""

        def send(progress: Progress) -> None:
            report(progress.to_dict())

        request = Request.from_dict(body)
        try:
            answer = self._resident.handle(request, send)
        # The boundary of a task's own code: what is no Exception ends this process, and reports why.
        except BaseException as exc:
            log.exception("run=%s client=%s failed", request.run, request.client)
            answer = Answer(outcome="lost", failure=failure_of(exc))
        # After an error nothing is certain of what is in this process.
        return Reply(answer.to_dict(), is_last=answer.outcome in ("failed", "lost", "stale"))

    def tidy(self) -> list[str]:
        """What the job has changed that a next one could see."""
        return self._resident.tidy()

    def end_round(self) -> None:
        """Have the training end at its next batch."""
        stopping.end_round()


def main() -> int:
    """Be a fork server until its worker ends."""
    logs.set_up_worker()
    return fork_server.main(sys.argv[1:], _prepare, TrainerHandler)


def _prepare() -> None:
    determinism.preload()
    # Only now: where many processes want the processor, importing torch would take a minute.
    os.nice(NICENESS)


if __name__ == "__main__":
    sys.exit(main())
