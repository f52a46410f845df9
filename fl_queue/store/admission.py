"""
Admission control: a limit on the bytes of a run's unmerged updates on the data server.

Each client writes one key of its own: it claims the size of its next update, reads the claims of the others,
and withdraws its own if the sum is above the limit. Write then read: of two concurrent claims, at least the
later sees the other.

A claim counts until its update is merged, or until the operator's side skips it: the client has then had a
turn, and clients with fewer turns no longer wait for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

import redis

from fl_queue.store import keyspace
from fl_queue.store.cluster import ClusterClient
from fl_queue.store.connection import script

#: A run's updates take at most one part in so many of a data server's maxmemory.
MEMORY_SHARE = 4
#: Lifetime of a claim without an extension; its client has died then.
ADMITTED_S = 120
#: Lifetime of a claim that is not admitted yet.
_ASKING_S = 10
#: Lifetime of a round's turns, should its aggregator be killed before it removes them.
TURNS_LIFETIME_S = 24 * 3600
#: Prefix of a claim that is not admitted yet.
_ASKING = b"?"


class Admission:
    """
    Permissions to push updates, by the bytes of unmerged updates on the data server.

    Args:
        client: A retrying client of the data server.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._dismiss = script(client, "dismiss")

    def room(self, most_bytes: int) -> int:
        """
        The limit on a run's unmerged updates, bytes: as configured, but at most a share of the server's memory.

        Sums and models need memory, too; without it no update could be merged and removed.
        """
        if isinstance(self._redis, ClusterClient):
            return most_bytes  # No node has all chunks, so the memory of one is no limit.
        memory = int(self._redis.info("memory").get("maxmemory") or 0)
        return min(most_bytes, max(1, memory // MEMORY_SHARE)) if memory else most_bytes

    def admit(
        self,
        run: str,
        client: str,
        update: str,
        most_bytes: int,
        others: Sequence[str],
        lifetime_s: int = ADMITTED_S,
        number: int = 0,
    ) -> bool:
        """
        Whether an update may be sent now, within ``most_bytes`` of unmerged updates.

        Idempotent; extends an earlier permission. A single update is always admitted.

        Args:
            client: The sender.
            update: Name of the update, ``<token>:<bytes>``.
            most_bytes: Limit on the unmerged updates of the run.
            others: The other senders; the claim of each counts for the size of this update at most.
            lifetime_s: The permission expires after this time.
            number: Round.
        """
        key, size = keyspace.admitted(run, client), size_of(update.encode())
        known = cast("bytes | None", self._redis.get(key))
        if known != update.encode():
            others = self._before(run, number, client, others)
            if self._lying(run, others, size) > max(0, most_bytes - size):
                return False
            self._redis.set(key, _ASKING + update.encode(), ex=_ASKING_S)
            # Again: of two concurrent claims, at least the later sees the other.
            if self._lying(run, others, size) > max(0, most_bytes - size):
                self._redis.delete(key)
                return False
        self._redis.set(key, update, ex=lifetime_s)
        return True

    def _before(self, run: str, number: int, client: str, others: Sequence[str]) -> Sequence[str]:
        """The clients with no more turns in the round than ``client``, for which it waits."""
        turns = cast(dict[bytes, bytes], self._redis.hgetall(keyspace.turns(run, number)))
        if not turns:
            return others
        counts = {who.decode(errors="replace"): int(count) for who, count in turns.items()}
        return [who for who in others if counts.get(who, 0) <= counts.get(client, 0)]

    def _lying(self, run: str, others: Sequence[str], most: int) -> int:
        if not others:
            return 0
        # MGET returns None for a key that is no string.
        found = self._redis.mget([keyspace.admitted(run, other) for other in others])
        return sum(min(size_of(update), most) for update in cast(list[Any], found) if update)

    def claims(self, run: str, clients: Sequence[str]) -> dict[str, bytes]:
        """Client -> the update of its claim, admitted or not."""
        found = self._redis.mget([keyspace.admitted(run, client) for client in clients])
        updates = zip(clients, cast(list["bytes | None"], found), strict=True)
        return {client: update for client, update in updates if update and size_of(update)}

    def release(self, run: str, updates: Iterable[tuple[str, str]], number: int = 0) -> None:
        """
        End the claims of updates that are no longer on the server.

        Args:
            updates: Pairs of client and name.
            number: The open round, to count a turn of these clients; 0: it has ended.
        """
        pairs = list(updates)
        if pairs:
            keys = [keyspace.turns(run, number), *(keyspace.admitted(run, who) for who, _ in pairs)]
            lifetime_s = TURNS_LIFETIME_S if number else 0
            self._dismiss(keys=keys, args=[lifetime_s, *(word for pair in pairs for word in pair)])

    def skip(self, run: str, number: int, client: str) -> None:
        """End the claim of a client that sends nothing, so that others no longer wait for it."""
        self.release(run, [(client, "")], number)

    def forget_turns(self, run: str, number: int) -> None:
        """Remove the turns of a round that has ended, and of the one before if they are left."""
        self._redis.unlink(keyspace.turns(run, number), keyspace.turns(run, number - 1))

    def forget(self, run: str, clients: Iterable[str]) -> None:
        """Remove the claims of a run that is not training."""
        keys = [keyspace.admitted(run, client) for client in clients]
        if keys:
            self._redis.unlink(*keys)


def size_of(update: bytes) -> int:
    """Size of an update by its name; 0 when the name has none."""
    digits = update.rpartition(b":")[2]
    return int(digits) if digits.isdigit() and len(digits) < 19 else 0


def permission(token: str, nbytes: int) -> str:
    """Entry by which an update of this token and size is admitted to the data server."""
    return f"{token}:{nbytes}"
