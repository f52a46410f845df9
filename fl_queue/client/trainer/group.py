"""
The processes of a trainer with several devices: the first one is asked by the worker, and passes requests on.

All are forked together, and end together: the fork server ends the rest when one of them ends, however it does. Each
can answer the worker with a failure, since the others may be waiting for it in a sum that never comes; the first one
answers when all have done the job. No torch here.
"""

from __future__ import annotations

import os
import signal
import socket
from dataclasses import dataclass, field
from typing import Any

from fl_queue.client.trainer.protocol import Channel, Message
from fl_queue.client.trainer.serve import EXIT_FRESH, Handler, Work


@dataclass(frozen=True)
class Seat:
    """
    The place of one process in a group.

    Args:
        rank: From 0.
        connection: To the worker.
        links: Of the first one: to each of the others, by rank; of another one: to the first.
        rendezvous: Descriptor of a file in memory that all of the group have; -1: the group is one process.
    """

    rank: int
    connection: socket.socket
    links: tuple[socket.socket, ...] = ()
    rendezvous: int = -1


@dataclass
class Group:
    """
    Descriptors of a group before its processes are forked.

    Args:
        connection: To the worker; belongs to this object.
        count: How many processes there are.
    """

    connection: socket.socket
    count: int
    _pairs: list[tuple[socket.socket, socket.socket]] = field(init=False, default_factory=list)
    _rendezvous: int = field(init=False, default=-1)

    def __post_init__(self) -> None:
        if self.count > 1:
            self._pairs = [socket.socketpair() for _ in range(self.count - 1)]
            self._rendezvous = os.memfd_create("flq-rendezvous")

    def seat(self, rank: int) -> Seat:
        """The place of a process, in that process; what is not its own is closed."""
        for number, (first, other) in enumerate(self._pairs, start=1):
            if rank:
                first.close()
            if number != rank:
                other.close()
        links = [first if not rank else other for first, other in self._pairs]
        mine = links if not rank else [links[rank - 1]]
        return Seat(rank, self.connection, tuple(mine), self._rendezvous)

    def close(self) -> None:
        """Close all of it, in the process that has forked them."""
        self.connection.close()
        for pair in self._pairs:
            for end in pair:
                end.close()
        if self._rendezvous >= 0:
            os.close(self._rendezvous)


def follow(seat: Seat, handler: Handler) -> int:
    """
    Be another process than the first one of a group: do what that one passes on, until it ends.

    Returns:
        Exit status of the process.
    """
    # The round's end reaches the first process alone; the group ends with it.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    first, worker, work = Channel(seat.links[0]), Channel(seat.connection), Work()
    try:
        while (request := first.receive()) is not None:
            reply = handler.handle(request.body, _drop)
            if reply.is_last:
                # Before this process ends: the first one, which is ended then, would only know that it has.
                worker.send(Message("answer", request.id, reply.body))
                return EXIT_FRESH
            first.send(Message("answer", request.id, reply.body))
            work.end(request.id)
            first.send(Message("idle", request.id, work.idle(handler.tidy())))
    except (BrokenPipeError, ConnectionResetError):
        pass
    return 0


def _drop(progress: dict[str, Any]) -> None:
    """Pass over progress: the first process reports it."""
