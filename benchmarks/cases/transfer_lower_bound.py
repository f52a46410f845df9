"""
The floor: a round's bytes, moved with bare redis-py by as many processes, and nothing else.

Each client reads the model and pushes an update; one reader takes all of them and writes one model:
13 models' bytes with 4 clients. Sizes and layout are those of a round: chunks on the server, or the
value itself in the list up to ``INLINE``. Nothing is looked at, nothing is summed, no disk is used.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from multiprocessing.process import BaseProcess
from typing import cast

import redis

INLINE = 1 << 20
CHUNK = 4190208
#: A process that waits longer has lost its partner.
PATIENCE_S = 300


def bytes_moved(nbytes: int, clients: int) -> int:
    """Bytes that cross a connection in a round."""
    return nbytes * (3 * clients + 1)


def measure(url: str, nbytes: int, clients: int, count: int) -> list[float]:
    """
    Seconds of each of ``count`` rounds, after one that warms up.

    Args:
        url: A server without an append-only file.
        nbytes: Of a model, and of an update.
    """
    context = multiprocessing.get_context("spawn")
    server = redis.Redis.from_url(url, socket_timeout=PATIENCE_S)
    server.delete("floor:done", "floor:results")
    _write(server, "model", os.urandom(nbytes))
    processes: list[BaseProcess] = [
        context.Process(target=_client, args=(url, index, nbytes, count + 1))
        for index in range(clients)
    ]
    processes.append(context.Process(target=_reader, args=(url, nbytes, clients, count + 1)))
    for process in processes:
        process.start()
    for _ in processes:
        server.blpop(["floor:ready"], PATIENCE_S)
    found = []
    for _ in range(count + 1):
        began = time.perf_counter()
        for index in range(clients):
            server.rpush(f"floor:go:{index}", 1)
        server.blpop(["floor:done"], PATIENCE_S)
        found.append(time.perf_counter() - began)
    for process in processes:
        process.join(PATIENCE_S)
    return found[1:]


def _client(url: str, index: int, nbytes: int, count: int) -> None:
    server = redis.Redis.from_url(url, socket_timeout=PATIENCE_S)
    update = os.urandom(nbytes)
    server.rpush("floor:ready", 1)
    for _ in range(count):
        server.blpop([f"floor:go:{index}"], PATIENCE_S)
        _read(server, "model", nbytes)
        if nbytes <= INLINE:
            server.rpush("floor:results", update)
        else:
            _write(server, f"update:{index}", update)
            server.rpush("floor:results", f"update:{index}")


def _reader(url: str, nbytes: int, clients: int, count: int) -> None:
    server = redis.Redis.from_url(url, socket_timeout=PATIENCE_S)
    model = os.urandom(nbytes)
    server.rpush("floor:ready", 1)
    for _ in range(count):
        for _ in range(clients):
            found = cast(list[bytes], server.blpop(["floor:results"], PATIENCE_S))
            if nbytes > INLINE:
                _read(server, found[1].decode(), nbytes)
        _write(server, "model", model)
        server.rpush("floor:done", 1)


def _write(server: redis.Redis, name: str, value: bytes) -> None:
    view = memoryview(value)
    for start in range(0, len(value), CHUNK):
        server.set(f"floor:{name}:{start}", view[start : start + CHUNK])


def _read(server: redis.Redis, name: str, nbytes: int) -> None:
    for start in range(0, nbytes, CHUNK):
        server.get(f"floor:{name}:{start}")
