"""
Workers of tests' federations, forked from a process that has imported what they need.

Each is a process of the operating system of its own, with the command line, environment, working folder and files that
it was started with; it is a child of the test's process, and runs the command's ``main``. What it starts of ours (a
worker, a fork server) is forked, too, as a child of it. Only the imports, three seconds of processor time for each
client, are done once in a session. Processes of other programs are started as ever.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import logging
import os
import pickle
import runpy
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import IO, Any, NoReturn

from fl_queue.common import collector, failpoints, processes, telemetry

#: What is imported for all of them.
PRELOADED = (
    "fl_queue.cli",
    "fl_queue.cli.worker",
    "workers.supervisor",
    "workers.background",
    "workers.aggregator",
    "workers.client",
    "workers.evaluator",
    "workers.trainer",
    "numpy.random",
)
_PADDING = 4000
_MAX_BYTES = 1 << 20
_CLONE_PARENT, _SYS_CLONE = 0x8000, {"x86_64": 56, "aarch64": 220}
#: Places of the parameters of ``_posixsubprocess.fork_exec``.
_PASS_FDS, _CWD, _ENVIRONMENT, _PIPES, _ERRORS, _NEW_SESSION = 3, 4, 5, slice(6, 12), 13, 15


class Started(subprocess.Popen[bytes]):
    """A child that another process has made."""

    def __init__(self, command: Sequence[str], pid: int) -> None:
        self.args, self.pid, self.returncode = list(command), pid, None
        self.stdin = self.stdout = self.stderr = None
        self._child_created, self._communication_started, self._input = True, False, None
        self._waitpid_lock = threading.Lock()


class Prestarted:
    """The process that forks; started when it is first needed, and again when it was killed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    def popen(
        self, command: Sequence[str], log: IO[bytes], environment: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        """Start ``python -m MODULE ...`` of ours; both its outputs go to ``log``."""
        if os.uname().machine not in _SYS_CLONE:
            return subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        request = pickle.dumps((list(command), dict(environment), str(Path.cwd())))
        for _ in range(2):
            if self._process is None or self._process.poll() is not None:
                self._start()
            assert self._socket is not None
            with suppress(OSError):
                socket.send_fds(self._socket, [request], [log.fileno()])
                if answer := self._socket.recv(64):
                    return Started(command, int(answer))
            self.close()
        raise RuntimeError("the process that forks workers ended twice")

    def _start(self) -> None:
        self.close()
        self._socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        code = "import sys; sys.path.append(sys.argv[2]); from tests.support import prestarted; prestarted.main()"
        root = str(Path(__file__).resolve().parents[2])
        with other:
            self._process = subprocess.Popen(
                # Room for the command lines to come.
                [sys.executable, "-P", "-c", code, str(other.fileno()), root, "." * _PADDING],
                pass_fds=[other.fileno()],
                # As that of fork servers: read when the interpreter starts.
                env={**os.environ, "PYTHONHASHSEED": "0"},
            )

    def close(self) -> None:
        """End the process; those that it has forked go on."""
        if self._socket is not None:
            self._socket.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = self._socket = None


#: (module, name) of lists and dictionaries that a process fills for itself.
_EMPTY: set[tuple[str, str]] = set()
#: What a process above has put there; an object that ends could end what it stands for.
_KEPT: list[object] = []
#: That of this session.
SESSION = Prestarted()


def main() -> None:
    """Fork until the session's process has closed its end."""
    processes.die_with_parent(os.getppid())
    control, root = socket.socket(fileno=int(sys.argv[1])), sys.argv[2]
    control.set_inheritable(False)
    collector.start_process()
    telemetry.leave_out()
    for name in PRELOADED:
        importlib.import_module(name)
    importlib.import_module("fl_queue.training.determinism").preload()
    sys.path.remove(root)
    _note_empty()
    gc.freeze()
    while True:
        request, descriptors, _, _ = socket.recv_fds(control, _MAX_BYTES, 1)
        if not request:
            return
        pid = _fork_sibling()
        if not pid:
            command, environment, folder = pickle.loads(request)
            os.chdir(folder)
            for number in (1, 2):
                os.dup2(descriptors[0], number)
            _let_go(keep=())
            _become(command, environment)
        control.send(str(pid).encode())
        os.close(descriptors[0])


def _fork_sibling() -> int:
    """As ``os.fork``, but the new process is a child of this one's parent, which waits for it."""
    python = ctypes.pythonapi
    # With the lock of the interpreter held, as in os.fork.
    libc = ctypes.PyDLL(None)
    number = _SYS_CLONE[os.uname().machine]
    python.PyOS_BeforeFork()
    pid = int(libc.syscall(number, _CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0))
    (python.PyOS_AfterFork_Parent if pid else python.PyOS_AfterFork_Child)()
    if pid < 0:
        raise OSError("clone failed")
    return pid


def _let_go(keep: Iterable[int]) -> None:
    """
    Let go of what is open, as the start of a program does.

    Python's objects of what was open live on, so their numbers are not given to others.
    """
    null = os.open(os.devnull, os.O_RDWR)
    for name in os.listdir("/proc/self/fd"):
        number = int(name)
        if number > 2 and number not in (*keep, null):
            with suppress(OSError):  # That of the list itself.
                os.get_inheritable(number)
                os.dup2(null, number, inheritable=False)


def _become(command: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
    """Be the process of a command from here on, in a process that was forked for it."""
    status: object = 1
    try:
        os.environ.clear()
        os.environ.update(environment)
        _forget()
        _name_process(command)
        subprocess._fork_exec = partial(_fork_exec, _REAL_FORK_EXEC)  # type: ignore[attr-defined]
        os.execve = partial(_execve, _REAL_EXECVE)  # type: ignore[assignment]
        collector.start_process()
        telemetry.leave_out()
        module, words = _module_of(command)
        sys.argv = ["-m", *words]
        sys.modules.pop(module, None)
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as exc:
        status = exc.code
        if isinstance(status, str):
            print(status, file=sys.stderr)
    except BaseException:  # noqa: BLE001
        sys.excepthook(*sys.exc_info())
    finally:
        with suppress(BaseException):
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status if isinstance(status, int) else int(status is not None))


_REAL_FORK_EXEC, _REAL_EXECVE = subprocess._fork_exec, os.execve  # type: ignore[attr-defined]


def _forget() -> None:
    """Forget what the process above has set up, as far as a program's start does."""
    atexit._clear()
    logging.root.handlers.clear()
    logging.root.setLevel(logging.WARNING)
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if callable(handler := signal.getsignal(number)) and not isinstance(
            handler, signal.Handlers
        ):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for module, name, value in _state():
        if hasattr(value, "cache_clear"):
            value.cache_clear()
        else:
            _KEPT.append(value)
            setattr(module, name, type(value)())
    # Read when it is imported.
    failpoints._FOLDER = os.environ.get("FLQ_FAULTS")
    sys.path[:0] = [
        part
        for part in os.environ.get("PYTHONPATH", "").split(os.pathsep)
        if part and part not in sys.path
    ]
    sys.modules["numpy"].random.seed()


def _state() -> list[tuple[ModuleType, str, Any]]:
    """Caches of our modules, and their own lists and dictionaries that were empty when they were imported."""
    found = []
    for title, module in list(sys.modules.items()):
        if title.partition(".")[0] in ("fl_queue", "workers"):
            for name, value in list(vars(module).items()):
                if hasattr(value, "cache_clear") or (title, name) in _EMPTY:
                    found.append((module, name, value))
    return found


def _note_empty() -> None:
    for title, module in list(sys.modules.items()):
        if title.partition(".")[0] in ("fl_queue", "workers"):
            _EMPTY.update(
                (title, name)
                for name, value in vars(module).items()
                if type(value) in (dict, list, set) and not value
            )


def _name_process(command: Sequence[str]) -> None:
    """Show the command in ``/proc/PID/cmdline``, followed by NULs."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    line = b"\0".join(map(os.fsencode, command)) + b"\0"
    line = line[: _PADDING - 1]
    ctypes.memset(start, 0, end - start)
    ctypes.memmove(start, line, len(line))


def _module_of(command: Sequence[str | bytes]) -> tuple[str, list[str]]:
    """(module of ours, its arguments) of ``python [-P] -m MODULE ...``; an empty module of another command."""
    words = [os.fsdecode(word) for word in command]
    rest = [word for word in words[1:3] if word != "-P"] + words[3:]
    ours = words[0] == sys.executable and len(rest) > 1 and rest[0] == "-m"
    if ours and (rest[1] == "fl_queue" or rest[1].partition(".")[0] == "workers"):
        return rest[1], rest[2:]
    return "", []


def _fork_exec(real: Any, *given: Any) -> int:
    """In place of ``_posixsubprocess.fork_exec``: fork for commands of ours."""
    command = given[0]
    if not _module_of(command)[0]:
        return int(real(*given))
    pid = os.fork()
    if pid:
        return pid
    try:
        if given[_NEW_SESSION]:
            os.setsid()
        pipes = given[_PIPES]
        for number, end in ((0, pipes[0]), (1, pipes[3]), (2, pipes[5])):
            if end >= 0:
                os.dup2(end, number)
        if given[_CWD] is not None:
            os.chdir(given[_CWD])
        # The starting process waits for the end of its pipe for errors, which is among them.
        _let_go(keep=set(given[_PASS_FDS]) - {given[_ERRORS]})
        pairs = given[_ENVIRONMENT]
        environment = dict(os.environ)
        if pairs is not None:
            parts = [os.fsdecode(pair).partition("=") for pair in pairs]
            environment = {name: value for name, _, value in parts}
        _become([os.fsdecode(word) for word in command], environment)
    finally:
        os._exit(255)


def _execve(real: Any, path: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
    """In place of ``os.execve``: go on as a command of ours."""
    if not _module_of(command)[0]:
        real(path, command, environment)
    _let_go(keep=())
    _become(command, environment)
