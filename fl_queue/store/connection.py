"""
Connections to the two Redis servers, and what becomes of their errors.

redis-py sends a command again after a timeout, so a command may be applied twice. Clients made
by ``connect`` retry; they are for idempotent commands and for scripts that recognise what they
have done. ``Servers.blocking`` and ``Servers.once`` never retry.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import redis
from redis import exceptions
from redis._parsers import Encoder
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.client import Pipeline
from redis.commands.core import Script
from redis.connection import ConnectionPool, PythonRespSerializer
from redis.retry import Retry

from fl_queue.common.redis_url import mask
from fl_queue.errors import ConfigError, StoreUnavailable, Trouble
from fl_queue.store import keyspace
from fl_queue.store.acl import Purpose
from fl_queue.store.cluster import (
    ClusterClient,
    cluster_client,
    is_cluster,
    mark_keys,
    pool_of_key,
)
from fl_queue.store.embedded import server_pair
from fl_queue.store.error_translation import classify, in_words, raise_trouble, translated
from fl_queue.store.pace import pace
from fl_queue.store.pipelines import EndablePipeline
from fl_queue.store.retries import RepeatingClient
from fl_queue.store.sentinel import FORM, is_sentinel, sentinel_pool
from fl_queue.store.split_users import SplitClient
from fl_queue.store.timeouts import WORKERS, Timeouts
from fl_queue.store.tls import connection_options
from fl_queue.store.wrong_types import Report, is_wrong_type, named, remove_wrong

OLDEST_SERVER = (6, 2)
_LUA = Path(__file__).parent / "lua"
#: Two round trips and 3 ms for a name in CLIENT LIST, at each connection of each job, are not wanted.
_UNNAMED: dict[str, Any] = {"driver_info": None}


#: Purpose -> (url, blob_url) with the login of the user for it.
OtherUsers = Mapping[Purpose, tuple[str, str]]
NO_OTHER_USERS: OtherUsers = {}
Made = TypeVar("Made", bound=SplitClient)


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
    private = server_pair.running(state_dir)
    if private is None:
        raise StoreUnavailable(
            "(none)",
            f"no redis.url is set and no private Redis runs in {state_dir}; start one with `fl-queue redis`, or set FLQ_REDIS_URL",
        )
    return private


def connect(
    url: str,
    blob_url: str,
    others: OtherUsers = NO_OTHER_USERS,
    timeouts: Timeouts = WORKERS,
    needs_data: bool = True,
) -> Servers:
    """
    Connect to both roles (lazily: nothing is sent yet, but to a cluster).

    Args:
        others: Purpose -> (url, blob_url) as another user, for a client that is several; see ``acl``.
        timeouts: How long their answers are waited for.
        needs_data: Whether a cluster of which no node answers is an error now; else its first use is.

    Raises:
        StoreUnavailable: A URL cannot be parsed, or no node of a cluster answers.
        ConfigError: The control server is a cluster.
    """
    if is_cluster(url):
        raise ConfigError(
            "redis.url",
            "a Redis Cluster cannot be the control server (RQ needs a plain one); name it in redis.blob_url",
        )
    if others and is_cluster(blob_url):
        raise ConfigError(
            "redis.blob_url", "a client of a Redis Cluster is one user: use Redis 7 or newer"
        )
    data, once, blocking = _data_or_away(blob_url, timeouts, needs_data)
    control = _client(url, timeouts)
    for purpose, (own_url, own_blob_url) in others.items():
        _add_user(control, purpose, _client(own_url, timeouts))
        own = _data_clients(own_blob_url, timeouts)
        for client, user in zip((data, once, blocking), own, strict=True):
            _add_user(client, purpose, user)
    return Servers(
        control=control,
        data=data,
        once=once,
        blocking=blocking,
        url=mask(url),
        blob_url=mask(blob_url),
    )


def _add_user(client: redis.Redis, purpose: Purpose, user: redis.Redis) -> None:
    assert isinstance(client, SplitClient)
    client.others = {**client.others, purpose: user}


def _data_or_away(
    url: str, timeouts: Timeouts, is_needed: bool
) -> tuple[redis.Redis, redis.Redis, redis.Redis]:
    try:
        return _data_clients(url, timeouts)
    except StoreUnavailable as exc:
        if is_needed or exc.trouble is Trouble.wrong_mode:
            raise
        away = Away(exc)
        return away, away, away


def _data_clients(url: str, timeouts: Timeouts) -> tuple[redis.Redis, redis.Redis, redis.Redis]:
    """(data, once, blocking) of ``Servers``."""
    never = replace(timeouts, retries=0)
    if is_cluster(url):
        once = _cluster(url, never)
        return _cluster(url, timeouts), once, once
    data, once = _zero_copy(_client(url, timeouts)), _zero_copy(_client(url, never))
    if timeouts.waits_for_slow:
        pace(data.connection_pool)
        pace(once.connection_pool)
    return data, once, _client(url, never)


def check(client: redis.Redis, url: str) -> None:
    """
    Check that a server answers, is new enough, and is of the kind that its URL names.

    Raises:
        StoreUnavailable: It does not answer, is older than 6.2, or belongs to a cluster that its URL
            does not name; the message has the remedy.
    """
    info = client.info("server")
    # Valkey names it otherwise.
    mode = info.get("redis_mode") or info.get("server_mode")
    if mode == "sentinel":
        raise _unfit(
            url, f"is a Redis Sentinel; write {FORM}, with the name it watches the server under"
        )
    if mode == "cluster" and not isinstance(client, ClusterClient):
        raise _unfit(
            url,
            "is a node of a Redis Cluster; name a plain server, or for redis.blob_url write redis+cluster://",
        )
    version = str(info.get("redis_version", ""))
    if version and tuple(int(part) for part in version.split(".")[:2]) < OLDEST_SERVER:
        raise _unfit(
            url, f"version {version} is too old; fl-queue needs Redis 6.2 or newer, or Valkey"
        )


def _unfit(url: str, reason: str) -> StoreUnavailable:
    return StoreUnavailable(mask(url), reason, Trouble.wrong_mode)


def plain_client(
    url: str, socket_timeout_s: float, others: OtherUsers = NO_OTHER_USERS
) -> redis.Redis:
    """A client for RQ: waits for its server, raises redis-py's own errors. Args: as of ``connect``."""

    def made(url: str) -> RepeatingClient:
        return _made(
            RepeatingClient,
            url,
            socket_timeout=socket_timeout_s,
            socket_connect_timeout=5,
            retry=_retry(3),
            **_UNNAMED,
        )

    client = made(url)
    client.others = {purpose: made(urls[0]) for purpose, urls in others.items()}
    return client


class _Script(Script):
    """A script that is loaded again when the server has forgotten it; a second time is an error of ours."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        try:
            return super().__call__(*args, **options)
        except exceptions.NoScriptError as exc:
            url = getattr(self.registered_client, "masked_url", "")
            raise StoreUnavailable(url, in_words(exc), Trouble.not_now) from exc


def script(client: redis.Redis, name: str) -> Script:
    """One of ``lua/*.lua``, bound to a server."""
    return _Script(client, (_LUA / f"{name}.lua").read_text(encoding="utf-8"))


def pool_of(client: redis.Redis, command: str, key: str) -> ConnectionPool:
    """
    The connections on which a command for a key is sent.

    Raises:
        redis.ConnectionError: No node of a cluster has it.
    """
    if isinstance(client, ClusterClient):
        return pool_of_key(client, key)
    if isinstance(client, SplitClient):
        return client.pool_of(command, key)
    return client.connection_pool


def identity_keys(client: redis.Redis) -> list[str]:
    """The marks of all nodes of a server: a node without its mark has lost its content."""
    return mark_keys(client) if isinstance(client, ClusterClient) else [keyspace.DATA_SERVER]


class _Pipeline(EndablePipeline):
    masked_url = ""
    owner: _Client

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        stack = list(self.command_stack)
        # As redis-py decides it. A transaction has been applied, but for what failed.
        is_transaction = cast(bool, self.transaction) or self.explicit_transaction
        with translated(self.masked_url, self.connection_pool):
            results = super().execute(raise_on_error=False)
            raise_trouble(results)
            if not raise_on_error:
                return results
            if self._removed(stack, results):
                if is_transaction:
                    # What it wrote there is lost, like any job or message: the healer finds out.
                    results = [None if is_wrong_type(result) else result for result in results]
                else:
                    self.command_stack = stack
                    results = super().execute(raise_on_error=False)
            for command, result in zip(stack, results, strict=False):
                if is_wrong_type(result):
                    raise named(result, command[0]) from result
            self.raise_first_error(stack, results)
        return results

    def _removed(self, stack: list[Any], results: list[Any]) -> bool:
        """Whether commands failed because of keys of a wrong type, which are gone now."""
        pairs = zip(stack, results, strict=False)
        wrong = [command[0] for command, result in pairs if is_wrong_type(result)]
        words = [word for command in wrong for word in command]
        return bool(wrong) and self.owner.remove_wrong(words)

    def immediate_execute_command(self, *args: Any, **options: Any) -> Any:
        with translated(self.masked_url, self.connection_pool):
            try:
                return super().immediate_execute_command(*args, **options)
            except redis.ResponseError as exc:
                if classify(exc) is not None and self.connection is not None:
                    self.connection.disconnect()  # It is not idle, so ``translated`` leaves it.
                if is_wrong_type(exc) and self.owner.remove_wrong(args):
                    raise redis.WatchError(str(exc)) from exc
                raise named(exc, args) from exc


class _Client(SplitClient):
    """A client whose connection errors are ``StoreUnavailable``, with the password masked."""

    masked_url = ""
    report: Report | None = None

    def execute_command(self, *args: Any, **options: Any) -> Any:
        with translated(self.masked_url, self.connection_pool):
            try:
                return super().execute_command(*args, **options)
            except redis.ResponseError as exc:
                if not (is_wrong_type(exc) and self.remove_wrong(args)):
                    raise named(exc, args) from exc
            return super().execute_command(*args, **options)

    def remove_wrong(self, words: Iterable[Any]) -> bool:
        """Remove the keys of a wrong type that a command met; whether there were any."""
        return remove_wrong(self, words, self.report)

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> Pipeline:
        pipe = _Pipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)
        pipe.masked_url = self.masked_url
        pipe.owner = self
        return pipe


class Away(_Client):
    """Stand-in for a cluster of which no node answered: every command raises the reason."""

    def __init__(self, trouble: StoreUnavailable) -> None:
        super().__init__()
        self._trouble = trouble

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Raise the reason why the cluster cannot be used."""
        raise StoreUnavailable(self._trouble.url, self._trouble.reason, self._trouble.trouble)

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> Pipeline:
        """Raise the reason why the cluster cannot be used."""
        return cast(Pipeline, self.execute_command())


def report_removed(servers: Servers, report: Report) -> None:
    """Have it reported when a key of a wrong type is removed."""
    for client in (servers.control, servers.data, servers.once, servers.blocking):
        if isinstance(client, _Client):
            client.report = report


def connection_errors(client: redis.Redis) -> AbstractContextManager[None]:
    """Turns errors of what bypasses a client's ``execute_command`` (pub/sub) into StoreUnavailable."""
    return translated(getattr(client, "masked_url", ""))


def _retry(times: int) -> Retry:
    return (
        Retry(ExponentialWithJitterBackoff(base=0.05, cap=1.0), times)
        if times
        else Retry(NoBackoff(), 0)
    )


@contextmanager
def _no_url(url: str, wanted: str) -> Iterator[None]:
    """
    Raise StoreUnavailable in place of redis-py's error about a URL that it cannot use.

    redis-py's message and error are dropped: they quote a misread URL with its password.
    """
    try:
        yield
    except TypeError as exc:  # "... got an unexpected keyword argument 'passwort'"
        option = str(exc).rpartition(" ")[2]
        raise _unfit(
            url, f"the option {option} of the URL is not known; correct or remove it"
        ) from None
    except ValueError:
        raise _unfit(
            url, f"not a Redis URL; write {wanted}, with special characters of a password as %XX"
        ) from None


def _try_options(client: redis.Redis) -> None:
    """See that connections can be made with the options of the URL; none is opened."""
    pool = client.connection_pool
    try:
        pool.connection_class(**pool.connection_kwargs)
    except redis.RedisError as exc:
        raise ValueError from exc


def _options(timeouts: Timeouts) -> dict[str, Any]:
    return {
        "retry": _retry(timeouts.retries),
        "socket_timeout": timeouts.answer_s,
        "socket_connect_timeout": timeouts.connect_s,
        "protocol": 2,
        **_UNNAMED,
    }


def _client(url: str, timeouts: Timeouts) -> redis.Redis:
    client = _made(_Client, url, **_options(timeouts))
    client.masked_url = mask(url)
    return client


def _made(kind: type[Made], url: str, **options: Any) -> Made:
    """A client of one server, or of whichever its sentinels call the primary."""
    with _no_url(url, FORM if is_sentinel(url) else "redis://host:port/0"):
        if is_sentinel(url):
            client = kind.from_pool(sentinel_pool(url, **options))
        else:
            client = kind.from_url(url, **options, **connection_options(url))
        _try_options(client)
    return cast(Made, client)


def _cluster(url: str, timeouts: Timeouts) -> redis.Redis:
    with _no_url(url, "redis+cluster://host:port/0"):
        client = cluster_client(url, packer=_packer(), **_options(timeouts))
    # redis-py has no common type for the two; Data uses what both can do.
    return cast(redis.Redis, client)


def _zero_copy(client: redis.Redis) -> redis.Redis:
    client.connection_pool.connection_kwargs["command_packer"] = _packer()
    return client


def _packer() -> PythonRespSerializer:
    # hiredis' packer copies a big argument three times; redis-py's own sends it as it is.
    return PythonRespSerializer(6000, Encoder("utf-8", "strict", False).encode)
