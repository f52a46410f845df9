"""Settings and state of a server, and a test write: for ``fl-queue doctor`` and Prometheus."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import redis

from fl_queue.errors import StoreUnavailable, Trouble
from fl_queue.store import keyspace
from fl_queue.store.cluster import ClusterClient, mark_keys, primaries
from fl_queue.store.error_translation import translated

#: A setting that a server does not report.
UNKNOWN = "?"
_PROBE_MS = 10_000


@dataclass(frozen=True)
class ServerFacts:
    """
    Settings and state of a server; settings that it does not report are ``?``.

    Args:
        time: Its clock, Unix seconds.
        used_bytes: Memory in use.
        limit_bytes: ``maxmemory``, else the memory of its machine; 0 when unknown.
        role: ``master`` or ``slave``.
        primary: ``host:port`` that a replica follows; empty for a primary.
        link: ``up`` or ``down``: the connection of a replica to its primary.
        replicas: Number of its replicas.
        min_replicas: ``min-replicas-to-write``: with fewer replicas it takes no writes.
        save: Save points, ``3600 1 300 100``; empty: none.
        stops_writes: ``stop-writes-on-bgsave-error``: ``yes`` or ``no``.
        last_save: ``ok`` or ``err``: result of its last snapshot.
        is_open: Whether its default user needs no password; False if it does not report that.
        connections, max_connections: Connected clients, and their limit; 0 when unknown.
    """

    url: str
    version: str
    memory_policy: str
    appendonly: str
    appendfsync: str
    time: float
    round_trip_s: float
    used_bytes: int
    limit_bytes: int
    role: str
    primary: str
    link: str
    replicas: int
    min_replicas: str
    save: str
    stops_writes: str
    last_save: str
    is_open: bool
    connections: int
    max_connections: int


def server_facts(client: redis.Redis, url: str) -> list[ServerFacts]:
    """
    Ask a server, or each primary of a cluster, for what decides whether it is fit for its role.

    Raises:
        StoreUnavailable: One does not answer.
    """
    if not isinstance(client, ClusterClient):
        return [_facts(client, url)]
    with translated(url):
        return [_facts(node, f"{url} node {name}") for name, node in primaries(client).items()]


def _facts(client: redis.Redis, url: str) -> ServerFacts:
    client.time()  # Connects. Not PING, which a server that cannot save refuses.
    started = time.monotonic()
    seconds, micros = client.time()
    round_trip_s = time.monotonic() - started
    info = client.info()
    settings = _settings(client)
    return ServerFacts(
        url=url,
        version=_version(info),
        memory_policy=str(info.get("maxmemory_policy", UNKNOWN)),
        appendonly="yes" if info.get("aof_enabled") else "no",
        appendfsync=settings.get("appendfsync", UNKNOWN),
        time=seconds + micros / 1e6,
        round_trip_s=round_trip_s,
        used_bytes=int(info.get("used_memory", 0)),
        limit_bytes=int(info.get("maxmemory") or info.get("total_system_memory") or 0),
        role=str(info.get("role", UNKNOWN)),
        primary=_primary(info),
        link=str(info.get("master_link_status", "")),
        replicas=int(info.get("connected_slaves", 0)),
        min_replicas=settings.get("min-replicas-to-write", UNKNOWN),
        save=settings.get("save", UNKNOWN),
        stops_writes=settings.get("stop-writes-on-bgsave-error", UNKNOWN),
        last_save=str(info.get("rdb_last_bgsave_status", UNKNOWN)),
        is_open=_is_open(client),
        connections=int(info.get("connected_clients", 0)),
        max_connections=int(info.get("maxclients") or settings.get("maxclients") or 0),
    )


def _version(info: Mapping[str, Any]) -> str:
    """Version to show: Valkey's ``redis_version`` is that of the Redis that it replaces."""
    if valkey := info.get("valkey_version"):
        return f"{valkey} (Valkey)"
    return str(info.get("redis_version", UNKNOWN))


def _primary(info: Mapping[str, Any]) -> str:
    host, port = info.get("master_host"), info.get("master_port")
    return f"{host}:{port}" if host and port else ""


def _settings(client: redis.Redis) -> dict[str, str]:
    """The relevant settings that it reports; managed servers often forbid CONFIG."""
    found: dict[str, str] = {}
    for name in (
        *("appendfsync", "min-replicas-to-write", "save"),
        *("stop-writes-on-bgsave-error", "maxclients"),
    ):
        try:
            found |= {str(key): str(value) for key, value in client.config_get(name).items()}
        except (redis.ResponseError, StoreUnavailable) as exc:
            if isinstance(exc, StoreUnavailable) and exc.trouble in (Trouble.gone, Trouble.silent):
                raise
            return found
    return found


def _is_open(client: redis.Redis) -> bool:
    try:
        user = client.acl_getuser("default")
    except (redis.ResponseError, StoreUnavailable) as exc:
        if isinstance(exc, StoreUnavailable) and exc.trouble in (Trouble.gone, Trouble.silent):
            raise
        return False
    return {"on", "nopass"} <= set(cast(dict[str, list[str]], user or {}).get("flags", ()))


def probe(client: redis.Redis, url: str) -> StoreUnavailable | None:
    """
    Write a key with a short life and read it back, on each primary of a cluster.

    Returns:
        Why the server takes no writes; None: it does.
    """
    token = secrets.token_hex(8)
    try:
        with translated(url):
            marks = mark_keys(client) if isinstance(client, ClusterClient) else [""]
            for key in (keyspace.probe(token, mark) for mark in marks):
                client.set(key, token, px=_PROBE_MS)
                if client.get(key) != token.encode():
                    reason = "does not give back what is written to it; name the primary itself"
                    return StoreUnavailable(url, reason, Trouble.wrong_mode)
                client.delete(key)
    except StoreUnavailable as exc:
        return exc
    return None
