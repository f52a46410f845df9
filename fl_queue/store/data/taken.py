"""Taken lists on the data server: the messages that one incarnation of an aggregator holds, and its lease."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any, cast

from fl_queue.errors import OwnershipLost
from fl_queue.store import keyspace
from fl_queue.store.connection import Servers, script

#: An incarnation that has not extended its lease for this long has lost its taken list.
OWNER_LIFETIME_S = 6.0
#: Earlier incarnations whose taken lists are looked at. One is enough in normal operation: a list
#: of an older one can only be filled by a blocking move sent by a process that was asleep since.
INCARNATIONS_LOOKED_AT = 64
#: Fences from its own on that a new incarnation looks at: a control server that lost its last writes counts
#: to them once more. Each lost claim of an aggregator is one.
_FENCES_LOST = 16
#: Elements taken at one go, past so many bytes no further one is.
TAKEN_BYTES = 256 * 1024


class TakenLists:
    """
    Reads and writes of taken lists.

    Args:
        servers: The connections to both servers.
    """

    def __init__(self, servers: Servers) -> None:
        self._redis = servers.data
        self._own = script(servers.data, "own")
        self._give_back = script(servers.data, "give_back")
        self._extend = script(servers.data, "extend")
        self._discard = script(servers.data, "discard")
        self._take = script(servers.once, "take")
        self._refuse = script(servers.data, "refuse")

    def count(self, run: str, fence: int) -> int:
        """Elements held by the incarnations up to ``fence``."""
        with self._redis.pipeline(transaction=False) as pipe:
            for earlier in _incarnations(fence + 1):
                pipe.llen(keyspace.taken(run, earlier))
            return sum(cast(list[int], pipe.execute()))

    def take(self, run: str, fence: int, token: str, most: int = 1) -> list[bytes]:
        """
        Move the oldest elements of the results list to our taken list and return them.

        A lost reply leaves them on the taken list: the incarnation must end, and the next one gets
        them back.

        Args:
            most: No more than so many, and only the first one may be larger than ``TAKEN_BYTES``.

        Raises:
            StoreUnavailable: The connection broke.
            OwnershipLost: The list is not ours (any more); nothing was moved.
        """
        # Not a blocking move: that waits for one run only, and others may need their aggregator.
        keys = [keyspace.results(run), keyspace.taken(run, fence), keyspace.owner(run, fence)]
        found = self._take(keys=keys, args=[most, TAKEN_BYTES, token])
        if found is None:
            raise OwnershipLost(f"run {run}: incarnation {fence} has lost its taken list")
        return cast(list[bytes], found)

    def refuse(self, run: str, fence: int, token: str, length: int, places: Sequence[int]) -> bool:
        """
        Remove elements of our taken list that are not wanted; idempotent.

        Args:
            length: Elements on it.
            places: Which of them go, from 0.

        Returns:
            False when we do not own the list any more; then nothing was removed.
        """
        keys = [keyspace.taken(run, fence), keyspace.owner(run, fence)]
        return bool(self._refuse(keys=keys, args=[token, length, secrets.token_hex(16), *places]))

    def own(self, run: str, fence: int, token: str) -> int:
        """
        Become the owner of ``taken:<fence>``; what other incarnations hold comes back first.

        Returns:
            0; or the highest fence, from this one on, that another incarnation has used: the control server,
            which counts fences, has lost its last writes. Then claim again with a higher fence.
        """
        others = range(_incarnations(fence).start, fence + _FENCES_LOST)
        keys = [keyspace.results(run), keyspace.owner(run, fence), *_keys_of(run, others)]
        args: list[Any] = [token, int(OWNER_LIFETIME_S * 1000), fence, others.start]
        return int(self._own(keys=keys, args=args))

    def extend(self, run: str, fence: int, token: str) -> None:
        """
        Extend our lease.

        Raises:
            OwnershipLost: It had run out, or the data server lost it.
        """
        if not self._extend(
            keys=[keyspace.owner(run, fence)], args=[token, int(OWNER_LIFETIME_S * 1000)]
        ):
            raise OwnershipLost(f"run {run}: incarnation {fence} has lost its taken list")

    def is_owned(self, run: str, fence: int) -> bool:
        """Whether an incarnation's lease lives."""
        return bool(self._redis.exists(keyspace.owner(run, fence)))

    def discard(self, run: str, fence: int, token: str, looked_at: int) -> None:
        """Remove the elements we have looked at, whose rounds have all ended."""
        self._discard(
            keys=[keyspace.taken(run, fence), keyspace.owner(run, fence)],
            args=[token, looked_at, looked_at],
        )

    def disown(self, run: str, fence: int) -> None:
        """Give up our lease: what is left on our taken list goes back to the results list."""
        self._redis.delete(keyspace.owner(run, fence))
        self.give_back(run, fence)

    def give_back(self, run: str, fence: int) -> int:
        """Move what incarnations up to ``fence`` hold without a living owner back to results."""
        return int(self._give_back(keys=[keyspace.results(run), *_pairs(run, fence + 1)]))


def _incarnations(before: int) -> range:
    return range(max(1, before - INCARNATIONS_LOOKED_AT), before)


def _pairs(run: str, before: int) -> list[str]:
    return _keys_of(run, _incarnations(before))


def _keys_of(run: str, fences: range) -> list[str]:
    return [
        key for fence in fences for key in (keyspace.taken(run, fence), keyspace.owner(run, fence))
    ]
