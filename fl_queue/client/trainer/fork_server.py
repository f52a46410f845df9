"""
The fork server: a process with torch imported that runs nothing, and forks trainers on request.

It has one thread and imports no task code, so that a trainer is forked in a known state. Each trainer gets the end
of a socket that its worker has made. The worker gets a pidfd, which stays this process's alone whatever happens to
its pid, and the exit status of each trainer.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

from fl_queue._version import __version__
from fl_queue.client.trainer import serve
from fl_queue.client.trainer.group import Group, Seat, follow
from fl_queue.client.trainer.others import Others
from fl_queue.client.trainer.protocol import (
    EXIT_OTHER_VERSION,
    Packet,
    receive_packet,
    send_packet,
)
from fl_queue.common import collector, failpoints, processes, telemetry

log = logging.getLogger(__name__)

#: Modules that a worker may ask to be imported.
_IMPORTS = frozenset({serve.COMPILER})


@dataclass(frozen=True)
class Kind:
    """
    The trainers of a fork server.

    Args:
        make_handler: The work of a process of a trainer; called in each.
        ranks: Processes of a trainer.
        takes: Whether all of them take part in a request, or the first one alone.
    """

    make_handler: Callable[[Seat], serve.Handler]
    ranks: int = 1
    takes: Callable[[dict[str, Any]], bool] = lambda body: True

    def run(self, seat: Seat) -> int:
        """Be a process of a trainer. Returns its exit status."""
        handler = self.make_handler(seat)
        if seat.rank:
            return follow(seat, handler)
        return serve.serve(seat.connection, handler, Others(seat.links, self.takes))


class ForkServer:
    """
    Forks trainers until the worker's end of the control socket is closed.

    The processes of one trainer end together: the first that ends takes the others along.

    Args:
        control: Control socket; belongs to this object.
        kind: Of the trainers.
    """

    def __init__(self, control: socket.socket, kind: Kind) -> None:
        self._control, self._kind = control, kind
        #: pidfd -> pid of the living processes.
        self._children: dict[int, int] = {}
        #: pid -> pids of all processes of its trainer, the first one's first.
        self._groups: dict[int, list[int]] = {}
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)

    def run(self) -> None:
        """Fork, and report ended trainers. Returns when the worker has closed its end."""
        while True:
            ready = {descriptor for descriptor, _ in self._poll.poll()}
            for descriptor in sorted(ready):
                # Another one of its trainer may have ended before, and it with it.
                if descriptor in self._children:
                    self._reap(descriptor)
            if self._control.fileno() in ready and not self._serve():
                return

    def _serve(self) -> bool:
        packet = receive_packet(self._control)
        if packet is None:
            return False
        if "import" in packet.values:
            self._import(packet.values)
            return True
        self._fork(packet)
        return True

    def _import(self, values: Mapping[str, object]) -> None:
        name = str(values["import"])
        if name in _IMPORTS:
            importlib.import_module(name)

    def _fork(self, packet: Packet) -> None:
        number, [descriptor] = packet.values["fork"], packet.descriptors
        group, parent = Group(socket.socket(fileno=descriptor), self._kind.ranks), os.getpid()
        pids, pidfds = [], []
        for rank in range(self._kind.ranks):
            _flush()
            pid = os.fork()
            if not pid:
                self._become_trainer(group, rank, parent)
            pids.append(pid)
            pidfds.append(os.pidfd_open(pid))
            self._children[pidfds[-1]] = pid
            self._poll.register(pidfds[-1], select.POLLIN)
        self._groups.update(dict.fromkeys(pids, pids))
        group.close()
        failpoints.failpoint("trainer.forked")
        send_packet(self._control, {"forked": number, "pid": pids[0]}, [pidfds[0]])

    def _become_trainer(self, group: Group, rank: int, parent: int) -> NoReturn:
        """Be the trainer; nothing of the fork server's code runs any more in this process."""
        status = 1
        try:
            serve.begin(parent)
            self._control.close()
            for pidfd in self._children:
                os.close(pidfd)
            status = self._kind.run(group.seat(rank))
        # The boundary of the process; a BaseException of a task ends it like any error.
        except BaseException:
            log.exception("the training process ends")
        finally:
            _flush()
            os._exit(status)

    def _reap(self, pidfd: int) -> None:
        status = self._waited(pidfd, pid := self._children[pidfd])
        group = self._groups[pid]
        # Killed all at once, before one is waited for: they may wait for each other.
        left = {one: other for one, other in self._children.items() if other in group}
        for other in left.values():
            with suppress(ProcessLookupError):
                os.kill(other, signal.SIGKILL)
        for one, other in left.items():
            self._waited(one, other)
        for other in group:
            del self._groups[other]
        send_packet(self._control, {"ended": group[0], "status": status})

    def _waited(self, pidfd: int, pid: int) -> int:
        """Exit status of a process that has ended, or is ending."""
        del self._children[pidfd]
        self._poll.unregister(pidfd)
        os.close(pidfd)
        return os.waitpid(pid, 0)[1]


def _flush() -> None:
    # A copy of what is not written yet would be written by each trainer again.
    sys.stdout.flush()
    sys.stderr.flush()


def main(arguments: Sequence[str], prepare: Callable[[], None], kind: Kind) -> int:
    """
    Be a fork server until its worker ends.

    Args:
        arguments: ``--control FD --parent PID --version TEXT``.
        prepare: Imports what every trainer needs, and runs nothing.
        kind: Of the trainers.

    Returns:
        Exit status.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--control", type=int, required=True, help="descriptor of the socket")
    parser.add_argument("--parent", type=int, required=True, help="pid of the worker")
    parser.add_argument("--version", required=True, help="of the worker's fl-queue")
    given = parser.parse_args(arguments)
    # An upgrade under a running worker: what its requests mean here is not certain.
    if given.version != __version__:
        log.error("this is fl-queue %s, but its worker is %s", __version__, given.version)
        return EXIT_OTHER_VERSION
    processes.die_with_parent(given.parent)
    # The worker decides when a trainer ends.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    control = socket.socket(fileno=given.control)
    # Inherited from the worker, which had to hand it on; programs of a task must not have it.
    control.set_inheritable(False)
    prepare()
    # What is here now stays: a collection in a trainer would copy every page it looks at.
    collector.started()
    telemetry.let_in()
    ForkServer(control, kind).run()
    return 0
