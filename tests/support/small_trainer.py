"""A fork server without torch whose trainers do what a request names: ``python -m tests.support.small_trainer``."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from fl_queue.client.trainer import fork_server, protocol
from fl_queue.client.trainer.serve import COMPILER, Reply
from fl_queue.common import collector

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
#: Starts a process in a session of its own and ends.
DAEMON = [
    sys.executable,
    "-c",
    f"import subprocess; subprocess.Popen({SLEEP!r}, start_new_session=True)",
]


class Handler:
    """Does the deed of each request; remembers the ones before."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.is_over = False
        self.changed: list[str] = []
        self.hoard: list[bytes] = []
        self.late = b""

    def handle(self, body: dict[str, Any], report: Callable[[dict[str, Any]], None]) -> Reply:
        """Do ``body["do"]``; the answer has the pid and the earlier deeds."""
        self.is_over = False
        deed, before = body["do"], list(self.done)
        self.done.append(deed)
        found = getattr(self, deed)(body, report) or {}
        return Reply({"pid": os.getpid(), "before": before, **found}, is_last=deed == "fail")

    def tidy(self) -> list[str]:
        """What a request has changed, as it wants."""
        if self.late:
            job_socket().sendall(self.late)
        changed, self.changed = self.changed, []
        return changed

    def end_round(self) -> None:
        """Note that the round has ended."""
        self.is_over = True

    def echo(
        self, body: dict[str, Any], report: Callable[[dict[str, Any]], None]
    ) -> dict[str, Any]:
        """Answer with the request."""
        return {"body": body}

    def collects(self, body: Any, report: Any) -> dict[str, Any]:
        """Whether garbage is collected, and whether what was imported is left alone."""
        return {"enabled": gc.isenabled(), "is_frozen": gc.get_freeze_count() > 0}

    def fail(self, body: Any, report: Any) -> None:
        """Answer, and end."""

    def count(self, body: dict[str, Any], report: Callable[[dict[str, Any]], None]) -> None:
        """Report progress."""
        for number in range(body["to"]):
            report({"number": number})

    def wait(
        self, body: dict[str, Any], report: Callable[[dict[str, Any]], None]
    ) -> dict[str, Any]:
        """Wait for the end of the round."""
        report({"waits": True})
        while not self.is_over:
            time.sleep(0.01)
        return {"ended": True}

    def sleep(self, body: Any, report: Callable[[dict[str, Any]], None]) -> None:
        """Wait, whatever comes."""
        report({"waits": True})
        while True:
            time.sleep(600)

    def loop(self, body: Any, report: Callable[[dict[str, Any]], None]) -> None:
        """Go on, whatever is raised."""
        report({"waits": True})
        while True:
            try:
                time.sleep(600)
            except BaseException:  # noqa: BLE001
                continue

    def stand(self, body: Any, report: Callable[[dict[str, Any]], None]) -> None:
        """Be stopped."""
        report({"waits": True})
        os.kill(os.getpid(), signal.SIGSTOP)

    def leave(
        self, body: dict[str, Any], report: Callable[[dict[str, Any]], None]
    ) -> dict[str, Any]:
        """Start processes of every kind; then do the deed ``then``."""
        subprocess.Popen(SLEEP)
        subprocess.Popen(SLEEP, start_new_session=True)
        subprocess.run(DAEMON, check=True)
        if body.get("then"):
            getattr(self, body["then"])(body, report)
        return {}

    def stop_own(self, body: Any, report: Any) -> dict[str, Any]:
        """Start processes in the usual ways, and stop them by ``SIGTERM``; their exit statuses."""
        context = multiprocessing.get_context("fork")
        with context.Pool(4) as pool:
            for _ in pool.imap(time.sleep, [0.01, 600, 600, 600]):
                break
        forked = context.Process(target=time.sleep, args=(600,))
        forked.start()
        program = subprocess.Popen(["sleep", "600"])
        forked.terminate()
        program.terminate()
        forked.join(5)
        with suppress(subprocess.TimeoutExpired):
            program.wait(5)
        return {"ended": [forked.exitcode, program.poll()]}

    def stop_at_once(self, body: dict[str, Any], report: Any) -> dict[str, Any]:
        """Fork processes, and stop each before it can have run a line; their exit statuses."""
        context = multiprocessing.get_context("fork")
        ended = []
        for _ in range(body["times"]):
            forked = context.Process(target=time.sleep, args=(600,))
            forked.start()
            forked.terminate()
            forked.join(5)
            ended.append(forked.exitcode)
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        return {"ended": ended, "blocked": [int(number) for number in blocked]}

    def change(self, body: Any, report: Any) -> None:
        """Leave something behind."""
        self.changed = ["task attribute 'seen'"]

    def compile(self, body: Any, report: Any) -> None:
        """Have torch's compiler, as far as its worker can see."""
        sys.modules[COMPILER] = sys.modules[__name__]

    def eat(self, body: dict[str, Any], report: Any) -> None:
        """Keep memory."""
        self.hoard.append(os.urandom(1 << 20) * body["mib"])

    def exit(self, body: dict[str, Any], report: Any) -> None:
        """End without an answer."""
        os._exit(body.get("status", 0))

    def raise_(self, body: Any, report: Any) -> None:
        """Raise what is no Exception."""
        raise KeyboardInterrupt

    def kill(self, body: dict[str, Any], report: Any) -> None:
        """End by a signal."""
        os.kill(os.getpid(), body["signal"])
        time.sleep(600)

    def write(self, body: dict[str, Any], report: Any) -> None:
        """Write to the job socket, as a task's own code can."""
        text = bytes.fromhex(body["hex"]) * body.get("times", 1)
        job_socket().sendall(text)

    def twice(self, body: Any, report: Any) -> None:
        """Write another answer after the answer."""
        self.late = message("answer", "job-1/0123456789abcdef", {})

    def close(self, body: Any, report: Any) -> None:
        """Close every descriptor."""
        os.closerange(3, 1024)
        time.sleep(600)

    def see(self, body: Any, report: Any) -> dict[str, Any]:
        """All that the process can see of its worker."""
        descriptors = [str(path.readlink()) for path in descriptor_paths()]
        maps = Path("/proc/self/maps").read_text()
        own = Path("/proc/self/environ").read_bytes().decode(errors="replace")
        return {
            "environ": dict(os.environ),
            "proc": own,
            "descriptors": descriptors,
            "maps": maps,
            "threads": len(list(Path("/proc/self/task").iterdir())),
            "arguments": Path("/proc/self/cmdline").read_bytes().decode(),
        }


def descriptor_paths() -> list[Path]:
    """Links of the open descriptors, but for that of the listing itself."""
    return [path for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]


def job_socket() -> socket.socket:
    """The socket of this trainer, found as foreign code would find it."""
    for path in descriptor_paths():
        if str(path.readlink()).startswith("socket:") and int(path.name) > 2:
            return socket.socket(fileno=os.dup(int(path.name)))
    raise AssertionError("no socket")


def frame(text: bytes) -> bytes:
    """A frame of any bytes."""
    return struct.pack("<I", len(text)) + text


def message(kind: str, name: str, body: dict[str, Any]) -> bytes:
    """A frame of a message."""
    return protocol.encode(protocol.Message(kind, name, body))  # type: ignore[arg-type]


if __name__ == "__main__":
    kind = fork_server.Kind(lambda seat: Handler())
    sys.exit(fork_server.main(sys.argv[1:], collector.start_process, kind))
