"""Three real sentinels on loopback for tests, and the pairs of servers that they watch."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self, cast

import redis

from tests.support.federation import wait_for
from tests.support.redis_cluster import free_port
from tests.support.server_binaries import chosen_server

#: A server that is silent for so long is taken to be away; short, and yet no hiccup of a loaded machine.
_DOWN_AFTER_MS = 1500
_SETTINGS = {
    "control": {"appendonly": "yes", "appendfsync": "always"},
    "data": {"appendonly": "no"},
}


class Process:
    """A redis-server of ours, with a port on loopback. Args: ``options``: command line of a start."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        folder.mkdir(parents=True)
        self.client = redis.Redis(port=self.port, protocol=2)
        self._process: subprocess.Popen[bytes] | None = None

    def launch(self, *arguments: str) -> None:
        binary = chosen_server()
        self._process = subprocess.Popen([str(binary), *arguments], cwd=self.folder)
        wait_for(f"a server on port {self.port}", self.answers)

    def kill(self) -> None:
        """End it without a word."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def send(self, signum: int) -> None:
        assert self._process is not None
        self._process.send_signal(signum)

    def answers(self) -> bool:
        assert self._process is None or self._process.poll() is None, "it has ended by itself"
        try:
            return bool(self.client.ping())
        except redis.RedisError:
            return False

    def replication(self) -> dict[str, Any]:
        """Its replication facts (``INFO replication``); empty while it does not answer."""
        with suppress(redis.RedisError):
            return dict(self.client.info("replication"))
        return {}


class Node(Process):
    """One server of a pair. Args: ``role``: ``control`` or ``data``."""

    def __init__(self, folder: Path, role: str, password: str = "") -> None:
        super().__init__(folder)
        self.role, self._password = role, password
        if password:
            self.client = redis.Redis(port=self.port, protocol=2, password=password)

    def start(self, primary: Node | None = None) -> None:
        options = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "dir": str(self.folder),
            "save": "",
            "repl-diskless-sync-delay": "0",
            "logfile": "redis.log",
            **_SETTINGS[self.role],
        }
        if self._password:
            options |= {"requirepass": self._password, "masterauth": self._password}
        arguments = [text for name, value in options.items() for text in (f"--{name}", value)]
        if primary is not None:
            arguments += ["--replicaof", "127.0.0.1", str(primary.port)]
        self.launch(*arguments)

    def is_primary(self) -> bool:
        return self.replication().get("role") == "master"

    def follows(self, primary: Node) -> bool:
        """Whether it is a replica that has all its primary has."""
        facts = self.replication()
        return (
            facts.get("master_link_status") == "up"
            and facts.get("master_port") == primary.port
            and facts["slave_repl_offset"] >= primary.replication()["master_repl_offset"]
        )


class Pair:
    """
    A primary and its replica, of which sentinels know.

    Args:
        name: What the sentinels call it.
    """

    def __init__(self, folder: Path, name: str, password: str = "") -> None:
        self.name = f"flq-{name}"
        self.nodes = [Node(folder / f"{name}-{number}", name, password) for number in (1, 2)]

    def start(self) -> None:
        self.nodes[0].start()
        self.nodes[1].start(self.nodes[0])
        wait_for("a replica", lambda: self.nodes[1].follows(self.nodes[0]))

    @property
    def primary(self) -> Node:
        return wait_for(
            "a primary", lambda: next((node for node in self.nodes if node.is_primary()), None)
        )  # type: ignore[return-value]

    def cut_off_replica(self) -> None:
        """Have the replica get nothing from its primary any more; sentinels mend that after some seconds."""
        self.replica.client.replicaof("127.0.0.1", 1)

    def configure(self, setting: str, value: int) -> None:
        """Set something on both nodes."""
        for node in self.nodes:
            node.client.config_set(setting, value)

    @property
    def replica(self) -> Node:
        primary = self.primary
        return next(node for node in self.nodes if node is not primary)


class Sentinels:
    """
    Three sentinels that watch a control and a data server. Use as a context manager.

    Args:
        folder: Of its own.
        password: Of the servers.
        own_password: Of the sentinels.
    """

    def __init__(self, folder: Path, password: str = "", own_password: str = "") -> None:
        self.control = Pair(folder, "control", password)
        self.data = Pair(folder, "data", password)
        self.watchers = [Process(folder / f"sentinel-{number}") for number in (1, 2, 3)]
        self._password, self._own_password = password, own_password
        if own_password:
            for each in self.watchers:
                each.client = redis.Redis(port=each.port, protocol=2, password=own_password)

    def url(self, pair: Pair, where: Sequence[str] = ()) -> str:
        hosts = ",".join(where or [f"127.0.0.1:{each.port}" for each in self.watchers])
        login = f":{self._password}@" if self._password else ""
        option = f"?sentinel_password={self._own_password}" if self._own_password else ""
        return f"redis+sentinel://{login}{hosts}/{pair.name}/0{option}"

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.callback(self._end)
            for pair in (self.control, self.data):
                pair.start()
            for each in self.watchers:
                self._start(each)
            for pair in (self.control, self.data):
                self._await_all(pair)
            stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._end()

    def _start(self, watcher: Process) -> None:
        lines = [f"port {watcher.port}", "bind 127.0.0.1", f"dir {watcher.folder}"]
        lines += ["logfile sentinel.log"]
        if self._own_password:
            lines += [f"requirepass {self._own_password}"]
        for pair in (self.control, self.data):
            lines += [
                f"sentinel monitor {pair.name} 127.0.0.1 {pair.nodes[0].port} 2",
                f"sentinel down-after-milliseconds {pair.name} {_DOWN_AFTER_MS}",
                f"sentinel failover-timeout {pair.name} 6000",
            ]
            if self._password:
                lines += [f"sentinel auth-pass {pair.name} {self._password}"]
        if self._own_password:
            lines += [f"sentinel sentinel-pass {self._own_password}"]
        path = watcher.folder / "sentinel.conf"
        path.write_text("\n".join(lines) + "\n")
        watcher.launch(str(path), "--sentinel")

    def _await_all(self, pair: Pair) -> None:
        """Wait until each sentinel knows the others and the replica: before that none would be elected."""

        def know() -> bool:
            known = [self._asked(each, pair) for each in self.watchers]
            return all(
                one["num-other-sentinels"] == len(self.watchers) - 1 and one["num-slaves"] == 1
                for one in known
            )

        wait_for("the sentinels to know each other", know)

    def _end(self) -> None:
        for each in (*self.watchers, *self.control.nodes, *self.data.nodes):
            each.client.close()
            each.kill()

    def kill_primary(self, pair: Pair) -> Node:
        """Kill the primary, and wait until the other one has taken over; returns the one that was killed."""
        old, new = pair.primary, pair.replica
        old.kill()
        wait_for("the failover", new.is_primary)
        return old

    def fail_over(self, pair: Pair) -> None:
        """Have the sentinels make the replica the primary while both live."""
        new = pair.replica
        self.restore(pair)

        def asked() -> bool:
            # Refused while they are at one already, or think that there is no good replica.
            with suppress(redis.ResponseError):
                self.watchers[0].client.execute_command("SENTINEL", "FAILOVER", pair.name)
            return new.is_primary()

        wait_for("the failover", asked)

    def at_once(self, act: Callable[[Pair], object]) -> None:
        """Do the same with both pairs at the same time: most of it is waiting for sentinels."""
        with ThreadPoolExecutor(2) as pool:
            # Waits for both, and raises what the first that failed has raised.
            for _ in pool.map(act, (self.control, self.data)):
                pass

    def restore_both(self) -> None:
        """Restore both pairs."""
        self.at_once(self.restore)

    def restore(self, pair: Pair) -> None:
        """Have both nodes there again, one the replica of the other, and all sentinels know it."""
        for node in pair.nodes:
            if not node.answers():
                other = next(one for one in pair.nodes if one is not node)
                node.start(other)

        def whole() -> bool:
            primaries = [node for node in pair.nodes if node.is_primary()]
            if len(primaries) != 1:
                return False
            replica = next(node for node in pair.nodes if node is not primaries[0])
            return replica.follows(primaries[0]) and all(
                self._sees(each, pair, primaries[0]) for each in self.watchers
            )

        wait_for("a primary and its replica", whole)

    @staticmethod
    def _asked(watcher: Process, pair: Pair) -> dict[str, Any]:
        """A sentinel's facts of a pair's primary."""
        return cast(dict[str, Any], watcher.client.sentinel_master(pair.name))

    @classmethod
    def _sees(cls, watcher: Process, pair: Pair, primary: Node) -> bool:
        facts = cls._asked(watcher, pair)
        replicas = watcher.client.sentinel_slaves(pair.name)
        return facts["port"] == primary.port and any(
            one["port"] != primary.port and not one["is_sdown"] and not one["is_disconnected"]
            for one in replicas
        )
