"""
A data server that is a Redis Cluster: one client for all its nodes, with our errors.

A run's lists have its name in braces, and so lie on one node; chunks are spread over all. The
control server is never a cluster: RQ cannot use one.
"""

from __future__ import annotations

from itertools import count
from typing import Any, cast
from urllib.parse import urlsplit, urlunsplit

import redis
from redis.cluster import ClusterNode, ClusterPipeline, RedisCluster
from redis.connection import ConnectionPool, parse_url
from redis.crc import key_slot
from redis.exceptions import RedisClusterException
from redis.retry import Retry

from fl_queue.common.redis_url import mask
from fl_queue.store import keyspace
from fl_queue.store.error_translation import raise_trouble, translated
from fl_queue.store.tls import connection_options

_SCHEMES = {"redis+cluster": "redis", "rediss+cluster": "rediss"}
_PORT = 6379


def is_cluster(url: str) -> bool:
    """Whether a URL names a cluster: ``redis+cluster://`` or ``rediss+cluster://``."""
    return url.partition("://")[0] in _SCHEMES


class _Pipeline(ClusterPipeline):
    masked_url = ""

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        with translated(self.masked_url):
            results = super().execute(raise_on_error)
            raise_trouble(results)
        return results


class ClusterClient(RedisCluster):
    """A client of all nodes; that some of them cannot be used is ``StoreUnavailable``."""

    masked_url = ""

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Execute a command. Raises StoreUnavailable if the cluster cannot be used."""
        with translated(self.masked_url):
            return super().execute_command(*args, **options)

    def pipeline(self, transaction: Any = None, shard_hint: Any = None) -> ClusterPipeline:
        """Commands for several nodes; never a transaction, whatever is asked for."""
        pipe = _Pipeline(
            nodes_manager=self.nodes_manager,
            commands_parser=self.commands_parser,
            result_callbacks=self.result_callbacks,
            cluster_response_callbacks=self.cluster_response_callbacks,
            reinitialize_steps=self.reinitialize_steps,
            retry=self.retry,
            lock=self._lock,
        )
        pipe.masked_url = self.masked_url
        return pipe

    def ping(self, **options: Any) -> bool:
        """Whether all primaries answer; a replica may be away."""
        return bool(super().ping(target_nodes=self.PRIMARIES, **options))


def cluster_client(url: str, retry: Retry, packer: Any, **options: Any) -> ClusterClient:
    """
    Connect to a cluster, of which one node must answer.

    Args:
        url: ``redis+cluster://user:password@host:port,host:port/0?option=value``; the nodes after
            the first are asked when it is away.
        retry: How often a command is tried again; a cluster client does not wait in between.
        packer: Turns commands into bytes.
        options: redis-py's of each connection.

    Raises:
        StoreUnavailable: None answers, or they are no cluster.
        ValueError: The URL cannot be parsed.
    """

    class Pool(ConnectionPool):
        # The cluster client passes on no packer, and no class of connections.
        def __init__(self, **settings: Any) -> None:
            settings |= connection_options(url)
            super().__init__(**settings, command_packer=packer)

    first, others = _nodes(url)
    with translated(mask(url)):
        client = ClusterClient(
            url=first,
            startup_nodes=[ClusterNode(host, port) for host, port in others],
            retry=retry,
            connection_pool_class=Pool,
            **options,
        )
    client.masked_url = mask(url)
    return client


def _nodes(url: str) -> tuple[str, list[tuple[str, int]]]:
    """A URL as redis-py knows them, of the first node; host and port of the others."""
    parts = urlsplit(url)
    user, at, hosts = parts.netloc.rpartition("@")
    first, *others = [
        urlunsplit((_SCHEMES[parts.scheme], user + at + host, *parts[2:]))
        for host in hosts.split(",")
    ]
    found = [parse_url(other) for other in others]
    return first, [(node["host"], node.get("port", _PORT)) for node in found]


def pool_of_key(client: ClusterClient, key: str) -> ConnectionPool:
    """
    The connections to the node that has a key, as far as the client knows.

    Raises:
        redis.ConnectionError: No node has it.
    """
    try:
        node = client.get_node_from_key(key)
    except RedisClusterException as exc:
        raise redis.ConnectionError(str(exc)) from exc
    return client.get_redis_connection(node).connection_pool


def primaries(client: ClusterClient) -> dict[str, redis.Redis]:
    """``host:port`` -> a plain client of each primary; its errors are redis-py's own."""
    return {
        node.name: client.get_redis_connection(node)
        for node in sorted(client.get_primaries(), key=lambda node: node.name)
    }


def mark_keys(client: ClusterClient) -> list[str]:
    """
    For each primary a key that lies on it: the first of ``flq:server:0``, ``flq:server:1``, ...

    Asks the cluster anew, so that every process gets the same ones.
    """
    slots: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for span, nodes in cast(Any, client.cluster_slots()).items():
        slots.setdefault(nodes["primary"], []).append(span)
    return sorted(_key_in(spans) for spans in slots.values())


def _key_in(spans: list[tuple[int, int]]) -> str:
    keys = map(keyspace.data_server_node, count())
    return next(
        key for key in keys if any(low <= key_slot(key.encode()) <= high for low, high in spans)
    )
