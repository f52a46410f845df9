"""What becomes of redis-py's errors. No connections here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import redis
from redis import exceptions

from fl_queue.errors import StoreUnavailable

_FULL = "is full (maxmemory); give it more memory"


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
        raise StoreUnavailable(url, f"not reachable ({exc}); is it running?") from exc
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
