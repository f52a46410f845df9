"""
Seeds and cohorts: everything random in a run starts from a hash of its names. No torch here.

SHA-256 rather than a numpy generator decides who is selected: numpy may change what a generator
draws between releases, and a cohort must be recomputable from the history for ever.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Sequence


def seed_for(seed: int, *parts: str | int) -> int:
    """
    The seed of one purpose, in [0, 2**63); unrelated for any two different lists of parts.

    Training uses ``seed_for(seed, run, round, client, "train")``: never the attempt, so that a
    job that is done again draws the same numbers.

    Args:
        seed: The run's seed.
        parts: What it is for; ``1`` and ``"1"`` differ, and so do ``("ab", "c")`` and
            ``("a", "bc")``.
    """
    return _number(hashlib.sha256(joined(seed, *parts)).digest())


def select_cohort(seed: int, round_number: int, eligible: Sequence[str], size: int) -> list[str]:
    """
    The clients of a round: a uniform draw without repeats, sorted.

    A pure function of its arguments that does not depend on the order of ``eligible``, so it can be
    recomputed from a round's record.

    Args:
        seed: The run's seed.
        round_number: From 1.
        eligible: Clients to select from; repeats count once.
        size: Clients wanted, 0 or more; all of them when there are fewer.
    """
    return sorted(in_order(seed, round_number, eligible, size))


def in_order(seed: int, round_number: int, eligible: Iterable[str], size: int) -> list[str]:
    """The same draw, in the order in which clients are drawn: the first of a longer draw are a shorter one."""
    # seed_for(seed, "cohort", round_number, client), what they have in common hashed once.
    common = hashlib.sha256(joined(seed, "cohort", round_number))

    def rank(client: str) -> tuple[int, str]:
        whole = common.copy()
        whole.update(_encode(client))
        # The name breaks a tie of hashes: unlikely, but then too the draw must not depend on order.
        return _number(whole.digest()), client

    return [client for _, client in heapq.nsmallest(size, map(rank, set(eligible)))]


def joined(*parts: str | int) -> bytes:
    """Texts and integers as bytes, type and length before each: no two lists of parts have the same."""
    return b"".join(map(_encode, parts))


def _number(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "big") >> 1


def _encode(part: str | int) -> bytes:
    tag, text = (b"s", part.encode()) if isinstance(part, str) else (b"i", b"%d" % part)
    return b"%b%d:%b" % (tag, len(text), text)
