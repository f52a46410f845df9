"""
The data server: how much of a run's updates may lie there unmerged.

Each client has a key of its own, and writes no other: it says what it is about to send, looks at what
the others have said, and takes its own back when that is too much. Whoever is second sees the first.

What a client says counts until its update is merged, or until the operator's side has others pass it:
then it has had a turn, and those with fewer turns wait for it no more.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

import redis

from fl_queue.store import keyspace
from fl_queue.store.cluster import ClusterClient
from fl_queue.store.connection import script

#: Of a data server's maxmemory, updates of a run have one part in so many at most.
MEMORY_SHARE = 4
#: A client that has not said for so long that it is still sending has died.
ADMITTED_S = 120
#: Nobody asks for longer than this.
_ASKING_S = 10
#: Who had a turn in a round is removed when it ends; by itself, should its aggregator be killed then.
TURNS_LIFETIME_S = 24 * 3600
#: Before an update that its client only asks for.
_ASKING = b"?"


class Admission:
    """
    Permissions to push updates, by the bytes that lie on the data server unmerged.

    Args:
        client: A retrying client of the data server.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._dismiss = script(client, "dismiss")

    def room(self, most_bytes: int) -> int:
        """
        Bytes of a run's updates that may lie here unmerged: as configured, if the server has the memory.

        Sums and models need room, too: without it nothing could be merged, and nothing would get less.
        """
        if isinstance(self._redis, ClusterClient):
            return most_bytes  # Chunks are spread over its nodes; none of them knows of the others.
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
        Whether an update may be sent now: no more than so many bytes lie on the server unmerged.

        Idempotent; extends the permission of one that has it. One alone is always admitted.

        Args:
            client: Whose update it is.
            update: Its name, ``<token>:<bytes>``.
            others: Who else sends updates; each counts as one of this size at most, whatever it says.
            lifetime_s: The permission ends by itself after this time.
            number: Round.
        """
        key, size = keyspace.admitted(run, client), size_of(update.encode())
        known = cast("bytes | None", self._redis.get(key))
        if known != update.encode():
            others = self._before(run, number, client, others)
            if self._lying(run, others, size) > max(0, most_bytes - size):
                return False
            self._redis.set(key, _ASKING + update.encode(), ex=_ASKING_S)
            # Again: somebody may have asked at the same time, and sees ours if we do not see theirs.
            if self._lying(run, others, size) > max(0, most_bytes - size):
                self._redis.delete(key)
                return False
        self._redis.set(key, update, ex=lifetime_s)
        return True

    def _before(self, run: str, number: int, client: str, others: Sequence[str]) -> Sequence[str]:
        """Those whom a client waits for: who has had no more turns in the round than itself."""
        turns = cast(dict[bytes, bytes], self._redis.hgetall(keyspace.turns(run, number)))
        if not turns:
            return others
        counts = {who.decode(errors="replace"): int(count) for who, count in turns.items()}
        return [who for who in others if counts.get(who, 0) <= counts.get(client, 0)]

    def _lying(self, run: str, others: Sequence[str], most: int) -> int:
        if not others:
            return 0
        # What is no string reads as nothing.
        found = self._redis.mget([keyspace.admitted(run, other) for other in others])
        return sum(min(size_of(update), most) for update in cast(list[Any], found) if update)

    def claims(self, run: str, clients: Sequence[str]) -> dict[str, bytes]:
        """Client -> the update that it holds room for, or asks for."""
        found = self._redis.mget([keyspace.admitted(run, client) for client in clients])
        updates = zip(clients, cast(list["bytes | None"], found), strict=True)
        return {client: update for client, update in updates if update and size_of(update)}

    def release(self, run: str, updates: Iterable[tuple[str, str]], number: int = 0) -> None:
        """
        Updates that do not lie on the server any more make room.

        Args:
            updates: (client, name).
            number: The open round, in which these clients have had their turn; 0: it has ended.
        """
        pairs = list(updates)
        if pairs:
            keys = [keyspace.turns(run, number), *(keyspace.admitted(run, who) for who, _ in pairs)]
            lifetime_s = TURNS_LIFETIME_S if number else 0
            self._dismiss(keys=keys, args=[lifetime_s, *(word for pair in pairs for word in pair)])

    def skip(self, run: str, number: int, client: str) -> None:
        """Others need not wait any more for a client that holds room: it has had its turn."""
        self.release(run, [(client, "")], number)

    def forget_turns(self, run: str, number: int) -> None:
        """Remove who had a turn in a round that has ended, and in the one before, should that be left."""
        self._redis.unlink(keyspace.turns(run, number), keyspace.turns(run, number - 1))

    def forget(self, run: str, clients: Iterable[str]) -> None:
        """Remove the permissions of a run that is not training: nothing more is sent."""
        keys = [keyspace.admitted(run, client) for client in clients]
        if keys:
            self._redis.unlink(*keys)


def size_of(update: bytes) -> int:
    """Size of an update by its name; 0 when the name tells none."""
    digits = update.rpartition(b":")[2]
    return int(digits) if digits.isdigit() and len(digits) < 19 else 0


def permission(token: str, nbytes: int) -> str:
    """What an update of this token and so many bytes is admitted to the data server as."""
    return f"{token}:{nbytes}"
