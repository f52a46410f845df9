"""What becomes of redis-py's errors. No connections here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import redis
from redis import exceptions

from fl_queue.errors import StoreUnavailable

_FULL = "is full (maxmemory); give it more memory"

_OURS = "wants to see a certificate of ours that a CA it knows has signed; name one (ssl_certfile and ssl_keyfile in the URL, or the credentials)"
#: What TLS says -> what it means for whoever set it up.
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


def _why_not_reachable(url: str, error: str) -> str:
    for text, meaning in _TLS_TROUBLE.items():
        if url.startswith("rediss") and text.lower() in error.lower().replace("alert ", ""):
            return f"{meaning} ({error})"
    hung_up = "closed by server" in error or "reset by peer" in error
    plain = "; does it want TLS (rediss://)?" if hung_up else ""
    return f"not reachable ({error}); is it running?{plain}"


def is_full(error: StoreUnavailable) -> bool:
    """Whether a command was refused because the server has no memory left."""
    return isinstance(error.__cause__, exceptions.OutOfMemoryError)


@contextmanager
def translated(url: str) -> Iterator[None]:
    """
    Turn errors of redis-py that say that a server cannot be used now into ours.

    Args:
        url: The server, masked.

    Raises:
        StoreUnavailable: Not reachable, full, read-only, another password, or a cluster that is
            not, or not yet again, whole.
    """
    try:
        yield
    except exceptions.OutOfMemoryError as exc:
        raise StoreUnavailable(url, _FULL) from exc
    except exceptions.AuthenticationError as exc:
        raise StoreUnavailable(url, f"refused the password ({exc})") from exc
    except exceptions.ReadOnlyError as exc:
        raise StoreUnavailable(url, "is a read-only replica; name the primary") from exc
    except (redis.ConnectionError, redis.TimeoutError) as exc:
        raise StoreUnavailable(url, _why_not_reachable(url, str(exc))) from exc
    except (
        exceptions.ClusterError,  # Among them CLUSTERDOWN: a node is missing, nobody has its slots yet.
        exceptions.RedisClusterException,
        exceptions.TryAgainError,
        exceptions.AskError,  # Among them MOVED.
    ) as exc:
        raise StoreUnavailable(url, f"its cluster cannot be used now ({exc})") from exc
    except redis.ResponseError as exc:
        # Redis 6.2 wraps what stopped a script.
        if "-OOM " not in str(exc):
            raise
        raise StoreUnavailable(url, _FULL) from exc
