"""
A trainer's loop: read a request, handle it, answer, tidy up, report that it is idle.

A trainer goes on only after a job that ended with an answer and left nothing behind that the next one could see.
Everything else ends the process: a fresh one is cheap. The handler brings torch; this module does not.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from fl_queue.client.trainer.others import Others
from fl_queue.client.trainer.protocol import Channel, Message
from fl_queue.common import failpoints, processes
from fl_queue.common.offspring import Offspring, helpers
from fl_queue.errors import MessageError

log = logging.getLogger(__name__)

#: Exit status of a trainer that another one is to follow: nothing went wrong.
EXIT_FRESH = 75
#: What stops a worker, and with it a whole control group; the worker decides when a trainer ends.
_SPARED = (signal.SIGTERM, signal.SIGINT)
_SMAPS = Path("/proc/self/smaps_rollup")
#: What ``torch.optim`` and ``torch.compile`` import on first use: nine hundred modules, two seconds.
COMPILER = "torch._dynamo"


@dataclass(frozen=True)
class Reply:
    """
    A handler's answer to a request.

    Args:
        body: Plain values, for the worker.
        is_last: Whether the process must end now: an error may have left anything in it.
    """

    body: dict[str, Any]
    is_last: bool = False


class Handler(Protocol):
    """The work of a trainer."""

    def handle(self, body: dict[str, Any], report: Callable[[dict[str, Any]], None]) -> Reply:
        """Answer a request. Args: ``report``: sends progress meanwhile."""

    def tidy(self) -> list[str]:
        """Clean up after the answer. Returns what the job has changed that a next one could see."""

    def end_round(self) -> None:
        """Have the job at work end soon, as its round has ended; called by a signal handler."""


class WorkerEnded(BaseException):
    """Raised in a job that reports to a worker which has ended; no Exception, as no failure of the job."""


class Work:
    """The jobs of this process, and the processes that they start."""

    def __init__(self) -> None:
        self._offspring, self._jobs = Offspring(adopt=False), 0

    def end(self, request: str) -> None:
        """End what a job has left behind. Args: ``request``: id, for the log."""
        self._jobs += 1
        ended = self._offspring.end(helpers())
        if ended:
            log.info("job %s left %d processes behind: ended", request, ended)

    def idle(self, changed: list[str], beside: int = 0) -> dict[str, Any]:
        """
        Report that the next request may come.

        Args:
            changed: What the job has changed that a next one could see.
            beside: Private memory of other processes that end with this one, bytes.
        """
        return {
            "jobs": self._jobs,
            "private_bytes": private_bytes() + beside,
            "changed": changed,
            "has_compiler": COMPILER in sys.modules,
        }


def begin(parent: int) -> None:
    """
    Make a forked process a trainer: it ends with its parent.

    Orphans of a job become children of the worker, which reaps them while the job goes on: here, nothing could
    distinguish them from children whose exit status the task waits for.

    Signals that stop a worker leave it alone, but end the processes that a task starts: it stops them so itself
    (``Popen.terminate``, the end of a ``multiprocessing.Pool``).

    Args:
        parent: Pid of the fork server.
    """
    processes.die_with_parent(parent)
    # A handler and not SIG_IGN: programs inherit what is ignored, but no handler. A forked process has it, too.
    for number in _SPARED:
        signal.signal(number, _on_spared)
    # Held back meanwhile: a signal to a process that was just forked would be lost, and its join wait for ever.
    os.register_at_fork(
        before=_hold_signals, after_in_parent=_release_signals, after_in_child=_end_at_signals
    )


def _on_spared(signum: int, frame: FrameType | None) -> None:
    """Do nothing."""


class _Held(threading.local):
    """Signals that a thread had blocked before its fork."""

    mask: set[int | signal.Signals]


_held = _Held()


def _hold_signals() -> None:
    _held.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SPARED)


def _release_signals() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _held.mask)


def _end_at_signals() -> None:
    for number in _SPARED:
        # What a task has set itself stays.
        if signal.getsignal(number) is _on_spared:
            signal.signal(number, signal.SIG_DFL)
    _release_signals()


def serve(connection: socket.socket, handler: Handler, others: Others | None = None) -> int:
    """
    Serve the requests of one worker until its socket is closed, or a job has left something behind.

    Args:
        connection: To the worker.
        handler: The work.
        others: The other processes of a group, which take part.

    Returns:
        Exit status of the process.
    """
    channel, work, others = Channel(connection), Work(), others or Others()

    def on_signal(signum: int, frame: FrameType | None) -> None:
        handler.end_round()

    signal.signal(signal.SIGUSR1, on_signal)
    try:
        while (request := channel.receive()) is not None:
            others.ask(request)
            reply = others.joined(request, _handled(channel, handler, request))
            _flush()
            channel.send(Message("answer", request.id, reply.body))
            work.end(request.id)
            failpoints.failpoint("trainer.tidied")
            if reply.is_last:
                return EXIT_FRESH
            theirs, beside = others.tidied(request)
            for what in (changed := [*handler.tidy(), *theirs]):
                log.info("%s changed in a job; a fresh process next time", what)
            _flush()
            channel.send(Message("idle", request.id, work.idle(changed, beside)))
            if changed:
                return EXIT_FRESH
    except (BrokenPipeError, ConnectionResetError, WorkerEnded):
        log.info("the worker has ended, and its training process with it")
    except MessageError as exc:
        log.error("the training process ends: %s", exc)
        return 1
    return 0


def _handled(channel: Channel, handler: Handler, request: Message) -> Reply:
    if request.kind != "request":
        raise MessageError(f"a message of the kind {request.kind} in place of a request")

    def report(body: dict[str, Any]) -> None:
        _flush()
        try:
            channel.send(Message("progress", request.id, body))
        except (BrokenPipeError, ConnectionResetError):
            raise WorkerEnded from None

    return handler.handle(request.body, report)


def private_bytes(smaps: Path = _SMAPS) -> int:
    """Memory of this process that no other shares, bytes; 0 where the kernel does not report it."""
    found = 0
    with suppress(OSError):
        for line in smaps.read_text().splitlines():
            if line.startswith(("Private_Clean:", "Private_Dirty:", "Private_Hugetlb:")):
                found += int(line.split()[1]) * 1024
    return found


def _flush() -> None:
    # What a task prints is in the log before the worker acts on the message that follows.
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
