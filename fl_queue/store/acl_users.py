"""
Redis users on both servers: made, ended, and made again where a server has forgotten them.

What they may do is ``store/acl.py``'s. A server with an ``aclfile`` keeps its users itself (ACL SAVE).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import redis

from fl_queue.errors import ConfigError, StoreUnavailable, Trouble
from fl_queue.store.cluster import ClusterClient
from fl_queue.store.connection import Servers, connection_errors

Server = Literal["control", "data"]
#: Server -> user name -> arguments of ACL SETUSER after it, with the hash of the password.
Rules = Mapping[str, Mapping[str, Sequence[str]]]


class Users:
    """
    Redis users on both servers.

    Args:
        servers: Both, with a login that may change users; with another login every call is refused.
    """

    def __init__(self, servers: Servers) -> None:
        self._clients: dict[Server, redis.Redis] = {"control": servers.control}
        if not _same(servers.control, servers.data):
            self._clients["data"] = servers.data

    @property
    def servers(self) -> list[Server]:
        """``control`` and ``data``; one entry when both are the same server."""
        return list(self._clients)

    def version(self) -> tuple[int, int]:
        """The older version of the two, (major, minor)."""
        found = [
            str(node.info("server")["redis_version"])
            for client in self._clients.values()
            for node in _nodes(client)
        ]
        return min((int(text.split(".")[0]), int(text.split(".")[1])) for text in found)

    def give(self, rules: Rules) -> None:
        """
        Make users, or set those anew that there are.

        Raises:
            ConfigError: We may not, or a server does not know one of the rules.
        """
        for server, client in self._clients.items():
            for name, arguments in rules.get(server, {}).items():
                self._each(client, "SETUSER", name, *arguments)

    def take(self, names: Mapping[str, Sequence[str]]) -> None:
        """
        End users and their connections; those that are gone already are no error.

        Args:
            names: Server -> its users that are to go.

        Raises:
            ConfigError: We may not.
        """
        for server, client in self._clients.items():
            if gone := list(names.get(server, ())):
                # Ends the connections of these users, too.
                self._each(client, "DELUSER", *gone)

    def missing(self, rules: Rules) -> dict[str, dict[str, Sequence[str]]]:
        """
        Those of the rules whose user a server does not have, or not any more.

        Raises:
            ConfigError: We may not ask.
        """
        lacking: dict[str, dict[str, Sequence[str]]] = {}
        for server, client in self._clients.items():
            there = [set(_texts(answer)) for answer in self._each(client, "USERS")]
            lacking[server] = {
                name: arguments
                for name, arguments in rules.get(server, {}).items()
                if not all(name in known for known in there)
            }
        return lacking

    def save(self) -> bool:
        """Have the servers keep their users over a restart; False when one has no ``aclfile``."""
        try:
            for client in self._clients.values():
                for node in _nodes(client):
                    with connection_errors(client):
                        node.execute_command("ACL SAVE")
        except redis.ResponseError:
            return False
        except StoreUnavailable as exc:
            if exc.trouble is not Trouble.not_allowed:
                raise
            return False
        return True

    def open_to_all(self) -> bool:
        """Whether a program on another machine, or of another user, may do everything there without a password."""
        return any(
            _needs_none(flags) and _listens(node)
            for client in self._clients.values()
            for node, flags in zip(
                _nodes(client), self._each(client, "GETUSER", "default"), strict=True
            )
        )

    def _each(self, client: redis.Redis, command: str, *arguments: str) -> list[Any]:
        try:
            with connection_errors(client):
                return [
                    node.execute_command(f"ACL {command}", *arguments) for node in _nodes(client)
                ]
        except StoreUnavailable as exc:
            if exc.trouble is not Trouble.not_allowed:
                raise
            raise ConfigError(
                "--redis-url",
                "this Redis user may not change users; name one that may use ACL, or give --no-acl",
            ) from exc
        except redis.ResponseError as exc:
            raise ConfigError(
                "--redis-url", f"the server refused ACL {command} ({exc}); give --no-acl"
            ) from exc


def _nodes(client: redis.Redis) -> Iterable[redis.Redis]:
    if isinstance(client, ClusterClient):
        return [client.get_redis_connection(node) for node in client.get_nodes()]
    return [client]


def _same(control: redis.Redis, data: redis.Redis) -> bool:
    if isinstance(data, ClusterClient):
        return False
    return bool(control.info("server")["run_id"] == data.info("server")["run_id"])


def _texts(items: Iterable[Any]) -> Iterable[str]:
    return (item.decode() if isinstance(item, bytes) else str(item) for item in items)


def _needs_none(answer: Any) -> bool:
    """Whether a user is let in without a password. Args: ``answer``: raw, or as redis-py parses it."""
    found = answer["flags"] if isinstance(answer, Mapping) else _texts(answer[1])
    flags = set(found)
    return "nopass" in flags and "off" not in flags


def _listens(node: redis.Redis) -> bool:
    """Whether a server can be reached by the network, and not by a socket of this machine alone."""
    try:
        with connection_errors(node):
            ports = [node.config_get(name).get(name, "0") for name in ("port", "tls-port")]
    except (redis.ResponseError, StoreUnavailable):
        return True  # Its config cannot be read.
    return any(port != "0" for port in ports)
