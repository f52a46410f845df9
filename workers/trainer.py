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
from dataclasses import replace
from typing import Any

from fl_queue.client.resident import Resident
from fl_queue.client.site import WorkerSettings
from fl_queue.client.trainer import fork_server
from fl_queue.client.trainer.group import Seat
from fl_queue.client.trainer.serve import Reply
from fl_queue.common import logs
from fl_queue.errors import ConfigError
from fl_queue.protocol.trainer_messages import Answer, Call, Progress, Request
from fl_queue.tasks.error_disclosure import failure_of
from fl_queue.training import determinism, stopping
from fl_queue.training.ranks import Ranks

log = logging.getLogger(__name__)

#: On a machine that several share, training gives way to leases, merging and restarts.
NICENESS = 10


#: What all processes of a trainer with several devices do together; the first one does the rest alone.
_SHARED = frozenset({Call.train, Call.evaluate, Call.score})


def is_shared(body: dict[str, Any]) -> bool:
    """Whether several devices share what is asked for."""
    return body.get("call") in _SHARED


class TrainerHandler:
    """
    ``Resident`` behind a socket: plain values in and out.

    Args:
        seat: The place of this process among those of its trainer.
    """

    def __init__(self, seat: Seat) -> None:
        site = WorkerSettings.from_environ()
        self._ranks: Ranks | None = None
        if len(site.devices) > 1:
            self._ranks = Ranks(seat.rank, site.devices, seat.rendezvous)
            site = replace(site, device=self._ranks.device)
        self._resident = Resident(site, self._ranks)

    def handle(self, body: dict[str, Any], report: Callable[[dict[str, Any]], None]) -> Reply:
        """Answer a request. Raises MessageError when it is none."""

        def send(progress: Progress) -> None:
            report(progress.to_dict())

        request = Request.from_dict(body)
        try:
            if self._ranks is not None and request.call in _SHARED:
                self._ranks.connect()
            answer = self._resident.handle(request, send)
        except ConfigError as exc:
            log.exception("run=%s client=%s failed", request.run, request.client)
            answer = Answer(outcome="failed", failure=failure_of(exc, lasts=True))
        # The boundary of a task's own code: what is no Exception ends this process, and reports why.
        except BaseException as exc:
            log.exception("run=%s client=%s failed", request.run, request.client)
            answer = Answer(outcome="lost", failure=failure_of(exc))
        # After an error nothing is certain of what is in this process. The others of a group still wait for one
        # that was asked to end with the round's end.
        last = {"failed", "lost", "stale"} | ({"ended"} if self._ranks is not None else set())
        return Reply(answer.to_dict(), is_last=answer.outcome in last)

    def tidy(self) -> list[str]:
        """What the job has changed that a next one could see."""
        return self._resident.tidy()

    def end_round(self) -> None:
        """Have the training end at its next batch."""
        stopping.end_round()


def main() -> int:
    """Be a fork server until its worker ends."""
    logs.set_up_worker()
    count = max(1, len(WorkerSettings.from_environ().devices))
    kind = fork_server.Kind(TrainerHandler, count, is_shared)
    return fork_server.main(sys.argv[1:], _prepare, kind)


def _prepare() -> None:
    determinism.preload()
    # Only now: where many processes want the processor, importing torch would take a minute.
    os.nice(NICENESS)


if __name__ == "__main__":
    sys.exit(main())
