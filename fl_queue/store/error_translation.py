"""
Translate redis-py's exceptions into fl_queue errors. No connections here.

``classify`` maps an error to the state of the server, for the whole program: ``translated`` uses it for the
store's own clients, and workers use it for RQ's connection, which raises redis-py's errors unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import redis
from redis import exceptions
from redis.connection import ConnectionPool
from redis.sentinel import MasterNotFoundError

from fl_queue.errors import StoreUnavailable, Trouble

_OURS = "wants to see a certificate of ours that a CA it knows has signed; name one (ssl_certfile and ssl_keyfile in the URL, or the credentials)"
#: Part of a TLS error's text -> its cause and remedy, for the operator of the server.
_TLS_TROUBLE = {
    "Hostname mismatch": "its certificate is for another name; connect by a name that is in it, or have one made for this name",
    "IP address mismatch": "its certificate is for another address; connect by a name that is in it, or have one made for this address",
    "certificate has expired": "its certificate has expired; renew it",
    "CERTIFICATE_VERIFY_FAILED": "its certificate is not signed by the CA that is trusted here; name the right one (ssl_ca_certs in the URL, or the credentials)",
    "WRONG_VERSION_NUMBER": "does not speak TLS there; write redis://, or name its TLS port",
    # A server of TLS 1.3 may hang up before we have read which of the two it is.
    "CERTIFICATE_REQUIRED": _OURS,
    "UNKNOWN_CA": _OURS,
    "violation of protocol": _OURS,
    "reset by peer": _OURS,
    "No such file": "a certificate file of the URL is not there",
    "KEY_VALUES_MISMATCH": "certificate and key of the URL do not belong together",
    "[X509": "a certificate file of the URL is not PEM text",
    "[SSL] PEM lib": "certificate or key of the URL is not PEM text, or they do not belong together",
}
_NODE = "is a node of a Redis Cluster; name a plain server, or for redis.blob_url write redis+cluster://"
_NO_CONNECTION = "has no connection left; raise its maxclients, or run fewer workers"
#: First word of an error reply -> the server's state, and the message.
_CODES = {
    "OOM": (Trouble.not_now, "is full (maxmemory); give it more memory"),
    "MISCONF": (
        Trouble.not_now,
        "cannot save to its disk and takes no writes (MISCONF); see its log, free space, then run BGSAVE there",
    ),
    "NOREPLICAS": (
        Trouble.not_now,
        "has too few replicas and takes no writes (NOREPLICAS); start them, or lower its min-replicas-to-write",
    ),
    "READONLY": (
        Trouble.not_now,
        "is a read-only replica; wait if this is a failover, else name the primary",
    ),
    "LOADING": (Trouble.not_now, "is loading its data after a start; wait"),
    "MASTERDOWN": (
        Trouble.not_now,
        "is a replica that has lost its primary; wait if this is a failover, else name the primary",
    ),
    "CLUSTERDOWN": (
        Trouble.not_now,
        "its cluster cannot be used now (CLUSTERDOWN); start the node that is missing, or wait for its replica",
    ),
    "TRYAGAIN": (Trouble.not_now, "its cluster is moving keys (TRYAGAIN); wait"),
    "ASK": (Trouble.not_now, "its cluster is moving keys (ASK); wait"),
    "BUSY": (
        Trouble.not_now,
        "is busy with a script that does not end; wait, or run SCRIPT KILL there",
    ),
    "UNBLOCKED": (Trouble.not_now, "changes its role just now (UNBLOCKED); wait"),
    "NOSCRIPT": (
        Trouble.not_now,
        "forgets scripts as soon as they are loaded; if several servers share this address, name the primary",
    ),
    "MOVED": (Trouble.wrong_mode, _NODE),
    "CROSSSLOT": (Trouble.wrong_mode, _NODE),
    "NOPERM": (
        Trouble.not_allowed,
        "forbids its user something (NOPERM); correct the user's rights there (`fl-queue acl`)",
    ),
    "NOAUTH": (
        Trouble.not_allowed,
        "refused the password (none was given); put user and password into the URL, or name the credentials",
    ),
    "WRONGPASS": (Trouble.not_allowed, "refused the password"),
    "DENIED": (
        Trouble.not_allowed,
        "takes no connections from other machines (protected mode); give it a password, or users",
    ),
}
#: Error replies about a wrong command; the server can be used.
_OF_COMMANDS = {
    *("ERR", "WRONGTYPE", "EXECABORT", "BUSYGROUP", "BUSYKEY", "NOGROUP", "NOTBUSY"),
    *("UNKILLABLE", "NOPROTO", "INVALIDOBJ", "BADARG"),
}
#: redis-py removes the word from the replies that it knows.
_CODE_OF_CLASS: dict[type[Exception], str] = {
    exceptions.OutOfMemoryError: "OOM",
    exceptions.ReadOnlyError: "READONLY",
    exceptions.BusyLoadingError: "LOADING",
    exceptions.MasterDownError: "MASTERDOWN",
    exceptions.ClusterDownError: "CLUSTERDOWN",
    exceptions.TryAgainError: "TRYAGAIN",
    exceptions.MovedError: "MOVED",
    exceptions.AskError: "ASK",
    exceptions.NoScriptError: "NOSCRIPT",
    exceptions.NoPermissionError: "NOPERM",
    exceptions.ClusterCrossSlotError: "CROSSSLOT",
    exceptions.ExecAbortError: "EXECABORT",
    exceptions.AuthenticationError: "WRONGPASS",
    exceptions.AuthorizationError: "WRONGPASS",
    exceptions.AuthenticationWrongNumberOfArgsError: "WRONGPASS",
}
#: All exceptions of an unusable server, so that they are not taken for a failure of a task.
REDIS_ERRORS = (StoreUnavailable, redis.RedisError, exceptions.RedisClusterException)
#: redis-py writes the failed command before the reply; it may have any text.
_IN_PIPELINE = "of pipeline caused error: "
_FIRST_WORD = re.compile(r"-?([A-Z][A-Z0-9_]*)(?: |$)")
#: Redis 6.2 on the error in a script; any version on a discarded transaction.
_CAUSE = re.compile(
    r"^(?:Error running script.*?: -|Transaction discarded because of: -?)([A-Z][A-Z0-9_]*) "
)
#: Replies to a script without the permission: Redis 6.2 and Valkey put no NOPERM before them.
_FORBIDDEN_TO_SCRIPT = ("The user executing the script can't", "ACL failure in script")
#: Error replies of a server that has just lost the role of primary.
_DEMOTED = {"READONLY", "UNBLOCKED", "MASTERDOWN"}
_MAX_CLIENTS = "max number of clients"


def classify(error: BaseException) -> Trouble | None:
    """
    The state of the server that an error means; None for an error in the command itself.

    Args:
        error: An error of redis-py, or a ``StoreUnavailable``.
    """
    if isinstance(error, StoreUnavailable):
        return error.trouble
    found = _look(error)
    return found[0] if found else None


def is_redis(error: BaseException) -> bool:
    """Whether an error is one of redis-py's."""
    return isinstance(error, (redis.RedisError, exceptions.RedisClusterException))


def in_words(error: BaseException) -> str:
    """An error as one line; if ``classify`` knows it, with cause and remedy."""
    if isinstance(error, StoreUnavailable):
        return error.reason
    found = _look(error)
    return found[1] if found else str(error)


def code_of(error: BaseException) -> str:
    """
    The word in capitals that a reply begins with (``READONLY``); empty when there is none.

    For an error within a script or a transaction, the word of that error, if the server includes it.
    """
    text = _reply(error)
    code = getattr(error, "status_code", None) or ""
    if code not in _CODES:
        code = _code_of_class(error) or code
    if not code and isinstance(error, redis.ResponseError):
        first = _FIRST_WORD.match(text)
        code = first[1] if first else ""
    if code in ("", "ERR", "EXECABORT"):
        if any(words in text for words in _FORBIDDEN_TO_SCRIPT):
            return "NOPERM"
        cause = _CAUSE.match(text.removeprefix("ERR ").removeprefix("EXECABORT "))
        return cause[1] if cause else code
    return code


def is_full(error: StoreUnavailable) -> bool:
    """Whether a command was refused because the server has no memory left."""
    return error.__cause__ is not None and code_of(error.__cause__) == "OOM"


@contextmanager
def drop_demoted(pool: ConnectionPool | None) -> Iterator[None]:
    """
    Close the connections to a server that is not the primary, or no longer the primary.

    A planned failover of a managed service leaves the old primary alive as a replica, with all connections to
    it, while its name leads to the new primary already.

    Args:
        pool: The connections; those in use meet the same error themselves. None: close nothing.
    """
    try:
        yield
    except redis.RedisError as exc:
        if pool is not None and code_of(exc) in _DEMOTED:
            pool.disconnect(inuse_connections=False)
        raise


@contextmanager
def translated(url: str, pool: ConnectionPool | None = None) -> Iterator[None]:
    """
    Raise StoreUnavailable in place of redis-py's errors of a server that cannot be used now.

    Args:
        url: The server, masked.
        pool: The connections to it, for ``drop_demoted``.

    Raises:
        StoreUnavailable: The server cannot be used, by ``classify``.
    """
    try:
        with drop_demoted(pool):
            yield
    except exceptions.NoScriptError:
        raise  # ``Script`` loads it and tries again.
    except (redis.RedisError, exceptions.RedisClusterException) as exc:
        found = _look(exc, url)
        if found is None:
            raise
        # Other texts quote the address, which may be a file of this machine.
        is_public = found in _CODES.values()
        raise StoreUnavailable(url, found[1], found[0], public=is_public) from exc


def raise_trouble(results: Iterable[object]) -> None:
    """
    Raise the first error in a pipeline's results that means that the server cannot be used now.

    For callers that handle the errors of single keys themselves.
    """
    for result in results:
        if isinstance(result, Exception) and classify(result) is not None:
            raise result


def _look(error: BaseException, url: str = "") -> tuple[Trouble, str] | None:
    code = code_of(error)
    if _MAX_CLIENTS in _reply(error):
        return Trouble.not_now, _NO_CONNECTION
    if code == "WRONGPASS":
        return Trouble.not_allowed, f"refused the password ({_reply(error)})"
    if code in _CODES:
        return _CODES[code]
    if code == "ERR" and "unknown command" in _reply(error):
        return Trouble.wrong_mode, _unknown_command(_reply(error))
    if isinstance(error, (exceptions.ClusterError, exceptions.RedisClusterException)):
        return _of_cluster(error)
    if isinstance(error, (redis.TimeoutError, redis.ConnectionError)):
        return _of_connection(error, url)
    if isinstance(error, exceptions.InvalidResponse):
        return Trouble.wrong_mode, "is no Redis server; correct the address"
    if isinstance(error, redis.ResponseError) and code and code not in _OF_COMMANDS:
        # A code of a later version: taken for a state that ends, as most known codes are.
        return Trouble.not_now, f"cannot serve now ({code}); see its log"
    return None


def _of_connection(error: BaseException, url: str) -> tuple[Trouble, str]:
    if isinstance(error, redis.TimeoutError):
        return Trouble.silent, f"not reachable ({error}); is it running?"
    if isinstance(error, MasterNotFoundError):
        return Trouble.gone, str(error)
    is_silent = "timed out" in str(error)
    return Trouble.silent if is_silent else Trouble.gone, _why_not_reachable(url, str(error))


def _reply(error: BaseException) -> str:
    """The server's reply, without the command that redis-py writes before it."""
    return str(error).rpartition(_IN_PIPELINE)[2]


def _code_of_class(error: BaseException) -> str | None:
    return next(
        (_CODE_OF_CLASS[kind] for kind in type(error).mro() if kind in _CODE_OF_CLASS), None
    )


def _unknown_command(reply: str) -> str:
    command = re.search(r"unknown command [`'](\w+)", reply)
    return f"does not know the command {command[1] if command else 'of a plain server'}; is it a Sentinel or a proxy? name the Redis server itself"


def _of_cluster(error: BaseException) -> tuple[Trouble, str]:
    text = str(error)
    if "luster mode is not enabled" in text or "cluster support disabled" in text:
        return Trouble.wrong_mode, "is no Redis Cluster; write redis:// instead of redis+cluster://"
    return Trouble.not_now, f"its cluster cannot be used now ({text})"


def _why_not_reachable(url: str, error: str) -> str:
    for text, meaning in _TLS_TROUBLE.items():
        if url.startswith("rediss") and text.lower() in error.lower().replace("alert ", ""):
            return f"{meaning} ({error})"
    hung_up = "closed by server" in error or "reset by peer" in error
    plain = "; does it want TLS (rediss://)?" if hung_up else ""
    return f"not reachable ({error}); is it running?{plain}"
