"""
Find the current primary of a server through Redis Sentinel.

Sentinels are asked at the use of a connection, at most every two seconds: in a planned failover the old
primary takes writes for up to ten seconds more, which are lost when it becomes a replica. A connection to a
node that is not the primary is closed, and the next one goes to the new primary, so that a caller meets only
a short outage.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, TypeVar, cast
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.connection import ConnectionPool, parse_url
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError, SentinelConnectionPool, SentinelManagedConnection

from fl_queue.common.redis_url import is_tls
from fl_queue.common.safe_json import is_count
from fl_queue.store.error_translation import code_of
from fl_queue.store.tls import TLSConnection, connection_options

FORM = "redis+sentinel://host:26379,host:26379,host:26379/NAME"
_SCHEMES = {"redis+sentinel": "redis", "rediss+sentinel": "rediss"}
_PORT = 26379
#: Options in the URL for the sentinels, not for the servers that they watch.
_FOR_SENTINELS = {"sentinel_username": "username", "sentinel_password": "password"}
#: Timeout of a sentinel's answer, before the next one is asked.
_PATIENCE_S = 2.0
#: Lifetime of the sentinels' answer.
_ASK_AGAIN_S = 2.0
#: The same when no sentinel knows the primary; existing connections are used meanwhile.
_UNKNOWN_S = 15.0

Reply = TypeVar("Reply")


def is_sentinel(url: str) -> bool:
    """Whether a URL names sentinels: ``redis+sentinel://`` or ``rediss+sentinel://``."""
    return url.partition("://")[0] in _SCHEMES


class Follower(SentinelManagedConnection):  # type: ignore[misc,unused-ignore]
    """A connection to the primary; closed when that server becomes a replica."""

    def connect_to(self, address: tuple[str, int]) -> None:
        """Connect; at a failure, have the sentinels asked anew."""
        try:
            super().connect_to(address)
        except (redis.RedisError, OSError):
            self.connection_pool.sentinel_manager.doubt()
            raise

    def send_packed_command(self, *args: Any, **options: Any) -> None:
        """Send a command, on a connection to the current primary."""
        # redis-py would connect to the old address, of a server that may be gone.
        if self._sock is None:
            self.connect()
        super().send_packed_command(*args, **options)

    def read_response(self, *args: Any, **options: Any) -> Any:
        """Read a reply; close the connection at one of a replica."""
        try:
            return super().read_response(*args, **options)
        except redis.ResponseError as exc:
            if code_of(exc) != "READONLY":
                raise
            self.disconnect()
            self.connection_pool.sentinel_manager.doubt()
            raise redis.ConnectionError("the primary has become a replica") from exc


class TLSFollower(Follower, TLSConnection):
    """The same, encrypted."""


class Pool(SentinelConnectionPool):  # type: ignore[misc,unused-ignore]
    """Connections to the current primary; those to an earlier one are closed."""

    def get_connection(self, *args: Any, **options: Any) -> Any:
        """A connection to the current primary."""
        # A connection that works is used, even if no sentinel answers.
        with suppress(MasterNotFoundError):
            self.get_master_address()  # Closes connections to other servers.
        return super().get_connection(*args, **options)


class Sentinels:
    """
    The sentinels of a URL, asked one after the other; their answer is shared by the whole process.

    Args:
        where: Host and port of each sentinel.
        name: The sentinels' name of the server.
        options: redis-py's options of connections to them.
    """

    def __init__(self, where: list[tuple[str, int]], name: str, options: dict[str, Any]) -> None:
        self.name = name
        self._clients = [
            redis.Redis(connection_pool=ConnectionPool(host=host, port=port, **options))
            for host, port in where
        ]
        self._found: tuple[str, int] | None = None
        self._until = 0.0

    def doubt(self) -> None:
        """Have the sentinels asked at the next use, as the primary cannot be used."""
        self._found, self._until = None, 0.0

    def discover_master(self, name: str) -> tuple[str, int]:
        """
        Host and port of the primary, for redis-py's pool.

        Raises:
            MasterNotFoundError: No sentinel knows it; the message has the reason of each.
        """
        if self._found is None or time.monotonic() >= self._until:
            try:
                self._found = self._ask(name)
            except MasterNotFoundError:
                self._until = time.monotonic() + _UNKNOWN_S
                raise
            self._until = time.monotonic() + _ASK_AGAIN_S
        return self._found

    def _ask(self, name: str) -> tuple[str, int]:
        refusals: dict[str, str] = {}
        for client in list(self._clients):
            try:
                found = self._address(client, name)
            except redis.RedisError as exc:
                refusals[_place(client)] = _why_not(exc)
                continue
            if found is not None:
                # Ask this sentinel first the next time, as those before it did not answer.
                self._clients = [client, *(one for one in self._clients if one is not client)]
                return found
            refusals[_place(client)] = f"watches no {name}{self._watched(client)}"
        raise MasterNotFoundError(
            "no sentinel knows the primary: "
            + "; ".join(f"{at} {why}" for at, why in refusals.items())
        )

    def each(self, ask: Callable[[redis.Redis], Reply]) -> dict[str, Reply | str]:
        """``host:port`` -> the sentinel's answer, or the reason why there is none, as text; sorted."""
        found: dict[str, Reply | str] = {}
        for client in sorted(self._clients, key=_place):
            try:
                found[_place(client)] = ask(client)
            except redis.RedisError as exc:
                found[_place(client)] = _why_not(exc)
            finally:
                client.connection_pool.disconnect(inuse_connections=False)
        return found

    def _address(self, client: redis.Redis, name: str) -> tuple[str, int] | None:
        try:
            # Not MASTERS, as redis-py sends: an ACL may allow clients this command alone.
            raw = client.execute_command("SENTINEL", "get-master-addr-by-name", name)
        finally:
            # Keep no connection open: a few sentinels serve many clients, which rarely ask.
            client.connection_pool.disconnect(inuse_connections=False)
        return (_text(raw[0]), int(raw[1])) if raw else None

    def _watched(self, client: redis.Redis) -> str:
        try:
            names = sorted(cast(dict[str, Any], client.sentinel_masters()))
        except redis.RedisError:
            return ""  # A sentinel may refuse this command.
        finally:
            client.connection_pool.disconnect(inuse_connections=False)
        return f" but {', '.join(names)}" if names else ""


@lru_cache(maxsize=8)
def sentinels(url: str) -> Sentinels:
    """
    The sentinels a URL names, the same object each time.

    Args:
        url: ``redis+sentinel://user:password@host:port,host:port/NAME/db?option=value``; user, password and
            options are for the servers, ``sentinel_username`` and ``sentinel_password`` for the sentinels.

    Raises:
        ValueError: The URL cannot be parsed.
    """
    parts = urlsplit(url)
    where = [(node["host"], int(node.get("port", _PORT))) for node in _nodes(url)]
    name, slash, db = parts.path.strip("/").partition("/")
    if not name or (slash and not is_count(db)):
        raise ValueError("no name, or no number of a database")
    options = {key: value for key, value in _of_servers(url).items() if key.startswith("ssl_")}
    options |= {
        _FOR_SENTINELS[key]: value for key, value in parse_qsl(parts.query) if key in _FOR_SENTINELS
    }
    options |= {
        "protocol": 2,
        "socket_timeout": _PATIENCE_S,
        "socket_connect_timeout": _PATIENCE_S,
        "retry": Retry(NoBackoff(), 0),
        **connection_options(url),
    }
    return Sentinels(where, unquote(name), options)


def sentinel_pool(url: str, **options: Any) -> Pool:
    """
    Connections to whichever server is the primary.

    Args:
        url: As of ``sentinels``.
        options: redis-py's, of connections to the servers.

    Raises:
        ValueError: The URL cannot be parsed.
    """
    asked = sentinels(url)
    kind = TLSFollower if is_tls(url) else Follower
    options = {**_of_servers(url), **options, "connection_class": kind}
    return Pool(asked.name, asked, **options)


def _of_servers(url: str) -> dict[str, Any]:
    """redis-py's options of connections to the servers, as the URL has them."""
    first = _nodes(url)[0]
    return {
        key: value
        for key, value in first.items()
        if key not in ("host", "port", "connection_class")
    }


def _nodes(url: str) -> list[Any]:
    """Options that redis-py reads from the URL, with each of its hosts."""
    parts = urlsplit(url)
    user, at, hosts = parts.netloc.rpartition("@")
    db = parts.path.strip("/").partition("/")[2]
    given = parse_qsl(parts.query, keep_blank_values=True)
    query = urlencode([pair for pair in given if pair[0] not in _FOR_SENTINELS])
    scheme = _SCHEMES[parts.scheme]
    return [parse_url(f"{scheme}://{user}{at}{host}/{db}?{query}") for host in hosts.split(",")]


def _place(client: redis.Redis) -> str:
    options = client.connection_pool.connection_kwargs
    return f"{options['host']}:{options['port']}"


def _why_not(error: redis.RedisError) -> str:
    text = str(error)
    if isinstance(error, redis.AuthenticationError):
        return f"wants a login ({text}); give it as sentinel_password in the URL"
    if "unknown command" in text.lower():
        return "is no Sentinel"
    return f"does not answer ({text})"


def _text(raw: Any) -> str:
    return raw.decode(errors="replace") if isinstance(raw, bytes) else str(raw)


@dataclass(frozen=True)
class SentinelFacts:
    """
    One sentinel's view of a server.

    Args:
        where: The sentinel.
        trouble: Reason why it did not answer; empty when it did.
        primary: ``host:port`` of the primary.
        replicas: Number of known replicas.
        others: Number of other known sentinels.
        quorum: Number of sentinels that have to agree on a failover.
        down: Whether it considers the primary unreachable.
    """

    where: str
    trouble: str = ""
    primary: str = ""
    replicas: int = 0
    others: int = 0
    quorum: int = 0
    down: bool = False


def sentinel_facts(url: str) -> list[SentinelFacts]:
    """The view of each sentinel of a URL. Raises ValueError for a URL without sentinels."""
    asked = sentinels(url)

    def ask(client: redis.Redis) -> SentinelFacts:
        reply = cast(Any, client.sentinel_master(asked.name))
        return SentinelFacts(
            where="",
            primary=f"{reply['ip']}:{reply['port']}",
            replicas=int(reply["num-slaves"]),
            others=int(reply["num-other-sentinels"]),
            quorum=int(reply["quorum"]),
            down=bool(reply.get("is_sdown") or reply.get("is_odown")),
        )

    return [
        SentinelFacts(where, trouble=reply)
        if isinstance(reply, str)
        else replace(reply, where=where)
        for where, reply in asked.each(ask).items()
    ]
