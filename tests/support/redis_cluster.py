"""A real Redis Cluster on loopback for tests: processes, slots, and what befalls them."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path
from typing import Any, Self

import redis
from redis.crc import key_slot

from tests.support.federation import wait_for
from tests.support.server_binaries import chosen_server

_SLOTS = 16384
#: A node listens for the others on its port and so much.
_BUS = 10_000
#: Ports that were given out: the kernel may give one again before it is served.
_GIVEN: set[int] = set()


class Node:
    """One redis-server of a cluster; its folder keeps who it is, and no data."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True)
        self.client = redis.Redis(port=self.port, protocol=2)

    def start(self) -> None:
        command = [str(chosen_server())]
        options = {
            "port": self.port,
            "bind": "127.0.0.1",
            "dir": self.folder,
            "save": "",
            "repl-diskless-sync-delay": 0,
            "cluster-enabled": "yes",
            "cluster-node-timeout": 1000,
            "logfile": "redis.log",
        }
        command += [text for name, value in options.items() for text in (f"--{name}", str(value))]
        self._process = subprocess.Popen(command)
        wait_for("a node", self._answers)

    def kill(self) -> None:
        """End it without a word; what it held is lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def id(self) -> str:
        return str(self.client.execute_command("CLUSTER MYID").decode())

    def is_ok(self) -> bool:
        return bool(self.client.cluster("info")["cluster_state"] == "ok")

    def knows_replica(self, of: Node) -> bool:
        return bool(self.client.execute_command("CLUSTER REPLICAS", of.id()))

    def _answers(self) -> bool:
        """Whether it serves its port, and not another server that was quicker."""
        assert self._process is not None
        try:
            return bool(self.client.info("server")["process_id"] == self._process.pid)
        except redis.ConnectionError:
            return False


class Cluster:
    """
    Three primaries with a third of the slots each. Use as a context manager.

    Args:
        folder: Of its own.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.nodes = [Node(folder / str(number)) for number in range(3)]
        self._others: list[Node] = []

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)
        return f"redis+cluster://{hosts}/0"

    def __enter__(self) -> Self:
        try:
            self._form()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        for node in (*self.nodes, *self._others):
            node.client.close()
            node.kill()

    def _form(self) -> None:
        share = -(-_SLOTS // len(self.nodes))
        for number, node in enumerate(self.nodes):
            node.start()
            mine = range(number * share, min((number + 1) * share, _SLOTS))
            node.client.execute_command("CLUSTER ADDSLOTS", *mine)
            self._introduce(node)
        self.await_ok()

    def _introduce(self, node: Node) -> None:
        node.client.execute_command("CLUSTER MEET", "127.0.0.1", self.nodes[0].port)

    def await_ok(self) -> None:
        """Wait until every node sees all slots served."""
        wait_for("the cluster", lambda: all(node.is_ok() for node in self.nodes))

    def node_of(self, key: str) -> Node:
        """The node that was given a key's slot at first."""
        return self.nodes[key_slot(key.encode()) // -(-_SLOTS // len(self.nodes))]

    def add_replica(self, of: Node) -> Node:
        """A node that takes over when another one has gone."""
        replica = Node(self._folder / f"replica-{len(self._others)}")
        self._others.append(replica)
        replica.start()
        self._introduce(replica)
        wait_for("the replica to know its primary", lambda: self._replicates(replica, of))
        wait_for("a copy", lambda: replica.client.info("replication")["master_link_status"] == "up")
        # A node that does not know it would not vote for it.
        wait_for("all to know", lambda: all(node.knows_replica(of) for node in self.nodes))
        return replica

    @staticmethod
    def _replicates(replica: Node, of: Node) -> bool:
        try:
            replica.client.execute_command("CLUSTER REPLICATE", of.id())
        except redis.ResponseError:
            return False  # It does not know that node yet.
        return True

    def flush(self) -> None:
        """Empty all nodes."""
        for node in self.nodes:
            node.client.flushall()

    def count(self, command: str) -> int:
        """How often all nodes together were asked to do something."""
        stats: list[Any] = [node.client.info("commandstats") for node in self.nodes]
        return sum(stat.get(f"cmdstat_{command}", {"calls": 0})["calls"] for stat in stats)


def free_port() -> int:
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            if port - _BUS in _GIVEN:
                continue
            try:
                # The bus has a port of its own; the kernel gives out ports from 32768 on.
                second.bind(("127.0.0.1", port - _BUS))
            except OSError:
                continue
            _GIVEN.add(port - _BUS)
            return port - _BUS
