"""
Connections to the two Redis servers, and what becomes of their errors.

redis-py sends a command again after a timeout, so a command may be applied twice. Clients made
by ``connect`` retry; they are for idempotent commands and for scripts that recognise what they
have done. ``Servers.blocking`` and ``Servers.once`` never retry.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import redis
from redis._parsers import Encoder
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.client import Pipeline
from redis.commands.core import Script
from redis.connection import ConnectionPool, PythonRespSerializer
from redis.retry import Retry

from fl_queue import embedded
from fl_queue.errors import StoreUnavailable

OLDEST_SERVER = (6, 2)
_LUA = Path(__file__).parent / "lua"
_SOCKET_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Servers:
    """
    The two Redis roles as four clients.

    Args:
        control: RQ, run and round state; retries.
        data: Results, taken lists, chunks, models; retries; sends big values without copying.
        once: The data server without retries, for RPUSH, which is not idempotent.
        blocking: The data server without retries, for blocking moves.
        url, blob_url: Where they are.
    """

    control: redis.Redis
    data: redis.Redis
    once: redis.Redis
    blocking: redis.Redis
    url: str
    blob_url: str


def resolve_urls(url: str, blob_url: str, state_dir: Path) -> tuple[str, str]:
    """
    The URLs to use: those given, else the private servers that run in the state folder.

    Raises:
        StoreUnavailable: No URL is given and no private servers run.
    """
    if url:
        return url, blob_url or url
    private = embedded.running(state_dir)
    if private is None:
        raise StoreUnavailable(
            "(none)",
            f"no redis.url is set and no private Redis runs in {state_dir}; start one with `fl-queue redis`, or set FLQ_REDIS_URL",
        )
    return private


def connect(url: str, blob_url: str) -> Servers:
    """
    Connect to both roles (lazily: nothing is sent yet).

    Raises:
        StoreUnavailable: A URL cannot be parsed.
    """
    return Servers(
        control=_client(url, retries=3),
        data=_zero_copy(_client(blob_url, retries=3)),
        once=_zero_copy(_client(blob_url, retries=0)),
        blocking=_client(blob_url, retries=0),
        url=mask(url),
        blob_url=mask(blob_url),
    )


def check(client: redis.Redis, url: str) -> None:
    """
    See that a server answers and is new enough.

    Raises:
        StoreUnavailable: It does not, or is older than 6.2; says what to do.
    """
    version = str(client.info("server")["redis_version"])
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_SERVER:
        raise StoreUnavailable(
            mask(url), f"version {version} is too old; fl-queue needs Redis 6.2 or newer"
        )


def plain_client(url: str, socket_timeout_s: float) -> redis.Redis:
    """A client that raises redis-py's own errors, for RQ, which expects them."""
    return redis.Redis.from_url(
        url, socket_timeout=socket_timeout_s, socket_connect_timeout=5, retry=_retry(3)
    )


def mask(url: str) -> str:
    """The URL with its password replaced by ``***``."""
    return re.sub(r"(://[^:/@]*):[^@/]*@", r"\1:***@", url)


def script(client: redis.Redis, name: str) -> Script:
    """One of ``lua/*.lua``, bound to a server."""
    return client.register_script((_LUA / f"{name}.lua").read_text(encoding="utf-8"))


def pool_of(client: redis.Redis, key: str) -> ConnectionPool:
    """The connections to the server that has a key."""
    return client.connection_pool


def unlink_matching(client: redis.Redis, pattern: str) -> None:
    """Remove all keys of a pattern; looks through all keys of the server."""
    keys = list(client.scan_iter(match=pattern, count=1000))
    if keys:
        client.unlink(*keys)


class _Pipeline(Pipeline):
    masked_url = ""

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        with _translated(self.masked_url):
            return super().execute(raise_on_error)

    def immediate_execute_command(self, *args: Any, **options: Any) -> Any:
        with _translated(self.masked_url):
            return super().immediate_execute_command(*args, **options)


class _Client(redis.Redis):
    """A client whose connection errors are ``StoreUnavailable``, with the password masked."""

    masked_url = ""

    def execute_command(self, *args: Any, **options: Any) -> Any:
        with _translated(self.masked_url):
            return super().execute_command(*args, **options)

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> Pipeline:
        pipe = _Pipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)
        pipe.masked_url = self.masked_url
        return pipe


@contextmanager
def _translated(url: str) -> Iterator[None]:
    try:
        yield
    except redis.exceptions.OutOfMemoryError as exc:
        raise StoreUnavailable(url, "is full (maxmemory); give it more memory") from exc
    except redis.exceptions.AuthenticationError as exc:
        raise StoreUnavailable(url, f"refused the password ({exc})") from exc
    except redis.exceptions.ReadOnlyError as exc:
        raise StoreUnavailable(url, "is a read-only replica; name the primary") from exc
    except (redis.ConnectionError, redis.TimeoutError) as exc:
        raise StoreUnavailable(url, f"not reachable ({exc}); is it running?") from exc


def _retry(times: int) -> Retry:
    return (
        Retry(ExponentialWithJitterBackoff(base=0.05, cap=1.0), times)
        if times
        else Retry(NoBackoff(), 0)
    )


def _client(url: str, retries: int) -> redis.Redis:
    try:
        client = cast(
            _Client,
            _Client.from_url(
                url,
                socket_timeout=_SOCKET_TIMEOUT_S,
                socket_connect_timeout=5,
                retry=_retry(retries),
                protocol=2,
                # Two round trips and 3 ms for a name in CLIENT LIST, at each connection of each job.
                driver_info=None,
            ),
        )
    except ValueError as exc:
        raise StoreUnavailable(
            mask(url), f"not a Redis URL ({exc}); write redis://host:port/0"
        ) from exc
    client.masked_url = mask(url)
    return client


def _zero_copy(client: redis.Redis) -> redis.Redis:
    # hiredis' packer copies a big argument three times; redis-py's own sends it as it is.
    packer = PythonRespSerializer(6000, Encoder("utf-8", "strict", False).encode)
    client.connection_pool.connection_kwargs["command_packer"] = packer
    return client


@dataclass(frozen=True)
class ServerFacts:
    """
    What a server says of itself; settings are ``?`` when it will not say.

    Args:
        time: Its clock, Unix seconds.
        used_bytes: Memory in use.
        limit_bytes: ``maxmemory``, else the memory of its machine; 0 when unknown.
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


def server_facts(client: redis.Redis, url: str) -> ServerFacts:
    """Ask a server for what decides whether it is fit for its role."""
    client.ping()
    started = time.monotonic()
    seconds, micros = client.time()
    round_trip_s = time.monotonic() - started
    info = client.info()
    return ServerFacts(
        url=url,
        version=str(info["redis_version"]),
        memory_policy=str(info.get("maxmemory_policy", "?")),
        appendonly="yes" if info.get("aof_enabled") else "no",
        appendfsync=_setting(client, "appendfsync"),
        time=seconds + micros / 1e6,
        round_trip_s=round_trip_s,
        used_bytes=int(info.get("used_memory", 0)),
        limit_bytes=int(info.get("maxmemory") or info.get("total_system_memory") or 0),
    )


def _setting(client: redis.Redis, name: str) -> str:
    try:
        return str(client.config_get(name).get(name, "?"))
    except redis.ResponseError:
        return "?"  # CONFIG is often forbidden on managed servers.
