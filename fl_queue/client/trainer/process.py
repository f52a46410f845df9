"""
A worker's side of its training processes: the fork server, and one trainer that is asked.

The worker talks to Redis, a trainer computes. Whatever ends the wait for an answer but the answer itself ends the
trainer and all that it has started: no training outlives its attempt. No Redis and no torch here.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from fl_queue._version import __version__
from fl_queue.client.trainer.protocol import (
    EXIT_OTHER_VERSION,
    FrameReader,
    Message,
    encode,
    new_id,
    receive_packet,
    send_packet,
)
from fl_queue.common import failpoints, oom_kills
from fl_queue.errors import MessageError, RoundEnded, TrainingLost

log = logging.getLogger(__name__)

#: From the end of a round to the kill of a trainer that goes on, seconds.
STOP_S = 2.0
#: Longest wait for a killed process, and for the status of an ended one, seconds.
_END_S = 5.0
#: Longest time between an answer and the report that its process is idle, seconds.
TIDY_S = 20.0
#: Longest time from a request for a trainer to its start, that of a fork server included, seconds.
FORK_S = 120.0
#: A process that ends closes its socket so much earlier at most, seconds.
_CLOSED_S = 1.0
_READ_BYTES = 1 << 18

OnProgress = Callable[[dict[str, Any]], None]


class Forked(NamedTuple):
    """A new trainer: its pid, a pidfd and the worker's end of its job socket; both belong to the caller."""

    pid: int
    pidfd: int
    connection: socket.socket


class ForkServerProcess:
    """
    The fork server of a worker, started when it is needed and again when it has ended.

    To be used from the worker's main thread alone: a fork server ends with the thread that started it.

    Args:
        command: Of the process; ``--control FD --parent PID --version TEXT`` are added.
        environment: Its whole environment; without anything of Redis.
        fork_s: It is ended when it has not forked after so long.
        ranks: Processes of each trainer.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        fork_s: float = FORK_S,
        ranks: int = 1,
    ) -> None:
        self._command, self._environment = list(command), dict(environment)
        self._fork_s, self.ranks = fork_s, ranks
        #: Whether the last one has refused to serve this version: there has been an upgrade.
        self.is_of_other_version = False
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        #: Pid of each trainer that is not forgotten -> its exit status; None: it has not ended.
        self._statuses: dict[int, int | None] = {}
        self._forks = 0
        #: Since when forks have been asked for, and none has come; None: none is out.
        self._silent_since: float | None = None

    @property
    def pid(self) -> int:
        """Pid of the process; 0 while there is none."""
        return self._process.pid if self._process is not None else 0

    def start(self) -> None:
        """Start the process, unless it lives; does not wait until it is ready."""
        if self._process is not None and self._process.poll() is None:
            return
        self.end()
        control, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            descriptor, parent = str(other.fileno()), str(os.getpid())
            given = ("--control", descriptor, "--parent", parent, "--version", __version__)
            self._process = subprocess.Popen(
                [*self._command, *given], env=self._environment, pass_fds=[other.fileno()]
            )
        self._control = control
        self._statuses.clear()
        self._silent_since = None

    def end(self) -> None:
        """End the process, if it lives, and with it its trainers."""
        if self._process is not None:
            self._process.kill()
            self.is_of_other_version = self._process.wait() == EXIT_OTHER_VERSION
            self._process = None
        if self._control is not None:
            self._control.close()
            self._control = None

    def fork(self) -> Forked:
        """
        A new trainer; waits for a fork server that is just starting.

        One that hangs is ended. An attempt that ends meanwhile ends none that has been silent for less than
        ``fork_s``: where rounds are shorter than its start, there would never be one. The time counts from the
        first attempt on.

        Raises:
            TrainingLost: The fork server ended, or hung, twice in a row; or it is of another version.
        """
        for _ in range(2):
            self.start()
            try:
                return self._fork()
            except (OSError, MessageError, EOFError) as exc:
                log.warning("the fork server of this worker ended (%s)", self._why_ended(exc))
                self.end()
            if self.is_of_other_version:
                raise _lost("fl-queue was upgraded under its worker, which is started again")
        raise _lost("its training process could not be started; see the log of its worker")

    def _patience(self) -> float:
        """How much longer the fork that is out may take, seconds."""
        now = time.monotonic()
        if self._silent_since is None:
            self._silent_since = now
        return self._silent_since + self._fork_s - now

    def _why_ended(self, error: Exception) -> str:
        assert self._process is not None
        if isinstance(error, TimeoutError):
            return str(error)
        with suppress(subprocess.TimeoutExpired):
            return f"status {self._process.wait(_END_S)}"
        return str(error)

    def _fork(self) -> Forked:
        assert self._control is not None
        self._forks += 1
        number = self._forks
        with ExitStack() as unused:
            mine, other = socket.socketpair()
            unused.callback(mine.close)
            with other:
                send_packet(self._control, {"fork": number}, [other.fileno()], socket.MSG_DONTWAIT)
            while True:
                if not _is_readable(self._control.fileno(), self._patience()):
                    raise TimeoutError(f"it has not forked in {self._fork_s:g} s")
                values, descriptors = self._receive()
                # That of an attempt which was ended meanwhile: its process ends with its socket.
                if values.get("forked") != number:
                    _close(descriptors)
                    continue
                [pidfd], pid = descriptors, int(values["pid"])
                unused.pop_all()
                # That of an earlier process of the same pid is not its own.
                self._statuses[pid] = None
                return Forked(pid, pidfd, mine)

    def status_of(self, pid: int) -> int | None:
        """Exit status of an ended trainer, as ``os.waitpid`` has it; None: it died with the fork server."""
        self.await_end(pid)
        return self._statuses.pop(pid, None)

    def await_end(self, pid: int) -> None:
        """Wait until the fork server has reported the end of a trainer: of all its processes."""
        until = time.monotonic() + _END_S
        with suppress(OSError, MessageError, EOFError):
            while self._is_awaited(pid) and (left := until - time.monotonic()) > 0:
                if self._control is None or not _is_readable(self._control.fileno(), left):
                    break
                _close(self._receive()[1])

    def forget(self, pid: int) -> None:
        """Keep no exit status of a trainer any more."""
        self._statuses.pop(pid, None)

    def _is_awaited(self, pid: int) -> bool:
        return pid in self._statuses and self._statuses[pid] is None

    def preload(self, module: str) -> None:
        """Have later trainers find a module imported."""
        if self._control is not None:
            with suppress(OSError):
                send_packet(self._control, {"import": module}, flags=socket.MSG_DONTWAIT)

    def _receive(self) -> tuple[dict[str, Any], list[int]]:
        assert self._control is not None
        packet = receive_packet(self._control)
        if packet is None:
            raise EOFError("it has closed its socket")
        if (pid := packet.values.get("ended")) in self._statuses:
            self._statuses[pid] = int(packet.values["status"])
        if "forked" in packet.values:
            self._silent_since = None
        return packet.values, packet.descriptors


@dataclass(frozen=True)
class Idle:
    """
    A trainer's report after a job.

    Args:
        jobs: How many it has done.
        private_bytes: Memory that no other process shares.
        has_compiler: Whether it has imported torch's compiler.
    """

    jobs: int = 0
    private_bytes: int = 0
    has_compiler: bool = False


class Trainer:
    """
    One training process, asked one request at a time.

    Args:
        server: Has forked it, and reports its exit status.
        forked: Its descriptors; they belong to this object.
    """

    def __init__(self, server: ForkServerProcess, forked: Forked) -> None:
        self._server, self.pid = server, forked.pid
        self._pidfd, self._connection = forked.pidfd, forked.connection
        self._connection.setblocking(False)
        self._reader = FrameReader()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._stop_at: float | None = None
        #: Id of the request that is out, or whose process is not idle again yet; empty: it is idle.
        self._id = ""
        self.is_ended = False
        self.idle: Idle = Idle()
        self.used_at = time.monotonic()

    def ask(self, job: str, body: dict[str, Any], on_progress: OnProgress) -> dict[str, Any]:
        """
        The trainer's answer.

        Args:
            job: Id of the RQ job.
            body: The request, of plain values.
            on_progress: Takes what the trainer reports meanwhile; what it raises ends the trainer.

        Raises:
            TrainingLost: It ended without an answer, or sent anything else.
            RoundEnded: It was stopped, and did not answer in time.
            MessageError: The request is longer than a message may be.
        """
        frame, before = encode(Message("request", new := new_id(job), body)), oom_kills.counts()
        self._id, self._stop_at, self.used_at = new, None, time.monotonic()
        try:
            self._send(frame)
            failpoints.failpoint("trainer.asked")
            answer = self._answer(on_progress)
            failpoints.failpoint("trainer.answered")
            return answer
        except MessageError as exc:
            self.kill()
            raise _lost(f"its training process wrote no answer ({exc}), and was ended") from exc
        except (EOFError, OSError) as exc:
            raise self._died(before) from exc
        # A timeout, the end of the worker, an error in ``on_progress``: it is not waited for any more.
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """Have the request that is out end: the trainer answers soon, or is killed. From any thread."""
        if self._stop_at is None and self._id and not self.is_ended:
            self._stop_at = time.monotonic() + STOP_S
            with suppress(OSError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGUSR1)
            os.eventfd_write(self._wake, 1)

    def settle(self) -> bool:
        """Wait until a trainer that has answered is idle. Returns False when it has ended."""
        if self.is_ended:
            return False
        try:
            until = time.monotonic() + TIDY_S
            while self._id and not self._took_idle(self._reader.next()):
                if not self._read(until):
                    raise MessageError("it is not idle in time")
            # Nothing may come unasked.
            if not self._reader.is_empty or _is_readable(self._connection.fileno(), 0):
                self._connection.recv(1, socket.MSG_PEEK) or _end_of_file()
                raise MessageError("a message that was not asked for")
        except (EOFError, OSError):
            self.kill()
        except MessageError as exc:
            log.warning("a training process is ended: %s", exc)
            self.kill()
        return not self.is_ended

    def kill(self) -> None:
        """End the process, whatever it is at, and wait for that."""
        if self.is_ended:
            return
        self.is_ended = True
        with suppress(OSError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        if not _is_readable(self._pidfd, _END_S):
            log.error("training process %d does not end", self.pid)
        # The others of a trainer with several devices end right after it.
        if self._server.ranks > 1:
            self._server.await_end(self.pid)
        self._close()

    def _close(self) -> None:
        self._connection.close()
        os.close(self._pidfd)
        os.close(self._wake)

    def _send(self, frame: bytes) -> None:
        """Send a frame; its reader may be slow, or gone. Raises OSError, RoundEnded."""
        left = memoryview(frame)
        while left:
            try:
                left = left[self._connection.send(left) :]
            except BlockingIOError:
                self._wait(select.POLLOUT)

    def _answer(self, on_progress: OnProgress) -> dict[str, Any]:
        while True:
            message = self._reader.next()
            if message is None:
                self._wait(select.POLLIN)
                self._receive()
            elif message.id != self._id:
                raise MessageError("the id of another request")
            elif message.kind == "progress":
                on_progress(message.body)
            elif message.kind == "answer":
                self._stop_at = None
                return message.body
            else:
                raise MessageError(f"a message of the kind {message.kind} in place of an answer")

    def _wait(self, events: int) -> None:
        """
        Wait for the socket.

        Raises:
            EOFError: The process has ended, and there is nothing more to read.
            RoundEnded: It was to stop, and has not.
        """
        poll = select.poll()
        poll.register(self._connection, events)
        poll.register(self._pidfd, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while True:
            left_s = None if self._stop_at is None else self._stop_at - time.monotonic()
            if left_s is not None and left_s <= 0:
                raise RoundEnded("the round has ended", public=True)
            ready = dict(poll.poll(None if left_s is None else left_s * 1000 + 1))
            if self._wake in ready:
                os.eventfd_read(self._wake)
            # What it wrote before it ended counts.
            if self._connection.fileno() in ready:
                return
            if self._pidfd in ready:
                _end_of_file()

    def _receive(self) -> None:
        with suppress(BlockingIOError):
            self._reader.add(self._connection.recv(_READ_BYTES) or _end_of_file())

    def _read(self, until: float) -> bool:
        """Read more; False when nothing came in time. Raises EOFError, OSError."""
        if not _is_readable(self._connection.fileno(), until - time.monotonic()):
            return False
        self._receive()
        return True

    def _took_idle(self, message: Message | None) -> bool:
        if message is None:
            return False
        if message.kind != "idle" or message.id != self._id:
            raise MessageError("another message than that it is idle")
        values = {name: message.body.get(name) for name in ("jobs", "private_bytes")}
        if not all(type(value) is int and value >= 0 for value in values.values()):
            raise MessageError("a report that holds no numbers")
        self.idle = Idle(**values, has_compiler=message.body.get("has_compiler") is True)  # type: ignore[arg-type]
        self._id = ""
        if message.body.get("changed"):
            _end_of_file()  # It ends by itself.
        return True

    def _died(self, before: Mapping[str, int]) -> TrainingLost:
        """Why the process ended. Args: ``before``: counts of processes that were ended for memory."""
        if not self.is_ended and not _is_readable(self._pidfd, _CLOSED_S):
            self.kill()
            return _lost("its training process closed its connection, and was ended")
        self.kill()
        status = self._server.status_of(self.pid)
        if status is None:
            return _lost("its training process ended with the process that had started it")
        return _lost(oom_kills.cause_of_end(status, before, oom_kills.counts()))


def _lost(reason: str) -> TrainingLost:
    # Of signals, statuses and the kernel's counters only: all of it may leave the site.
    return TrainingLost(reason, public=True)


def _end_of_file() -> Any:
    raise EOFError("it has ended")


def _is_readable(descriptor: int, wait_s: float) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(max(0.0, wait_s) * 1000))


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
