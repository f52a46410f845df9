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
from typing import NoReturn

from fl_queue._version import __version__
from fl_queue.client.trainer import serve
from fl_queue.client.trainer.protocol import (
    EXIT_OTHER_VERSION,
    Packet,
    receive_packet,
    send_packet,
)
from fl_queue.common import collector, failpoints, processes

log = logging.getLogger(__name__)

#: Modules that a worker may ask to be imported.
_IMPORTS = frozenset({serve.COMPILER})


class ForkServer:
    """
    Forks trainers until the worker's end of the control socket is closed.

    Args:
        control: Control socket; belongs to this object.
        trainer: Work of a trainer: called in the forked process with its job socket, returns its exit status.
    """

    def __init__(self, control: socket.socket, trainer: Callable[[socket.socket], int]) -> None:
        self._control, self._trainer = control, trainer
        #: pidfd -> pid of the living trainers.
        self._children: dict[int, int] = {}
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)

    def run(self) -> None:
        """Fork, and report ended trainers. Returns when the worker has closed its end."""
        while True:
            ready = {descriptor for descriptor, _ in self._poll.poll()}
            for descriptor in ready & self._children.keys():
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
        connection, parent = socket.socket(fileno=descriptor), os.getpid()
        _flush()
        pid = os.fork()
        if not pid:
            self._become_trainer(connection, parent)
        connection.close()
        pidfd = os.pidfd_open(pid)
        self._children[pidfd] = pid
        self._poll.register(pidfd, select.POLLIN)
        failpoints.failpoint("trainer.forked")
        send_packet(self._control, {"forked": number, "pid": pid}, [pidfd])

    def _become_trainer(self, connection: socket.socket, parent: int) -> NoReturn:
        """Be the trainer; nothing of the fork server's code runs any more in this process."""
        status = 1
        try:
            serve.begin(parent)
            self._control.close()
            for pidfd in self._children:
                os.close(pidfd)
            status = self._trainer(connection)
        # The boundary of the process; a BaseException of a task ends it like any error.
        except BaseException:
            log.exception("the training process ends")
        finally:
            _flush()
            os._exit(status)

    def _reap(self, pidfd: int) -> None:
        pid = self._children.pop(pidfd)
        self._poll.unregister(pidfd)
        os.close(pidfd)
        _, status = os.waitpid(pid, 0)
        send_packet(self._control, {"ended": pid, "status": status})


def _flush() -> None:
    # A copy of what is not written yet would be written by each trainer again.
    sys.stdout.flush()
    sys.stderr.flush()


def main(
    arguments: Sequence[str], prepare: Callable[[], None], make_handler: Callable[[], serve.Handler]
) -> int:
    """
    Be a fork server until its worker ends.

    Args:
        arguments: ``--control FD --parent PID --version TEXT``.
        prepare: Imports what every trainer needs, and runs nothing.
        make_handler: The work of a trainer; called in each.

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
    ForkServer(control, lambda connection: serve.serve(connection, make_handler())).run()
    return 0
