"""
Whose masks pair with whose, and how many shares rebuild a secret.

Up to 64 clients all of them are neighbours. Beyond that the cohort lies on a ring, in an order that follows from
the context, and a client's neighbours are those nearest to it; their number and the threshold are the least for
which it is as good as certain that no client has that many colluding neighbours, that every secret can be
rebuilt, and that the honest survivors are one part.

Source:
    Bell et al. 2020, "Secure single-server aggregation with (poly)logarithmic overhead" (eprint 2020/704).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable
from typing import NamedTuple

from fl_queue.common.seeding import joined
from fl_queue.errors import ConfigError

#: Largest cohort in which every client is a neighbour of every other.
COMPLETE = 64
#: Negative powers of two: of a collusion or a graph in two parts, and of a secret with too few holders left.
_SAFE_BITS = 40
_LIVE_BITS = 20


class Shape(NamedTuple):
    """Args: ``degree``: neighbours of each client (k); ``threshold``: shares that rebuild a secret (t)."""

    degree: int
    threshold: int


def shape(cohort: int, corrupt: float, dropout: float) -> Shape:
    """
    The graph's degree and threshold for a cohort.

    Args:
        cohort: Clients, 2 or more.
        corrupt: Part of them that may collude with the operator.
        dropout: Part of them that may drop out.

    Raises:
        ConfigError: No graph of so many clients withstands that.
    """
    if cohort <= COMPLETE:
        return Shape(cohort - 1, cohort // 2 + 1)
    bad, alive = math.floor(corrupt * cohort), cohort - 1 - math.floor(dropout * cohort)
    for degree in range(4, cohort, 2):
        threshold = _safe_threshold(cohort, bad, degree)
        if threshold is None or not _stays_whole(cohort, degree, corrupt, dropout, _SAFE_BITS):
            continue
        too_few = _at_most(cohort - 1, alive, degree, threshold - 1)
        if cohort * too_few <= 2.0**-_LIVE_BITS:
            return Shape(degree, threshold)
    raise ConfigError(
        "secure.max_corrupt",
        f"no graph of {cohort} clients withstands {corrupt:g} of them colluding and "
        f"{dropout:g} dropping out; lower it, or secure.max_dropout",
    )


def is_safe(cohort: int, chosen: Shape, corrupt: float, dropout: float) -> bool:
    """
    Whether a recorded shape protects as much as ``shape`` does, with one bit of slack as floats differ by machine.

    Args:
        cohort, corrupt, dropout: As of ``shape``.
        chosen: As the round recorded it.
    """
    degree, threshold = chosen
    if cohort <= COMPLETE:
        return degree == cohort - 1 and cohort // 2 + 1 <= threshold <= cohort
    if not (4 <= degree < cohort and degree % 2 == 0 and 2 <= threshold <= degree + 1):
        return False
    bits = _SAFE_BITS - 1
    colluding = _at_least(cohort - 1, math.floor(corrupt * cohort), degree, threshold)
    return cohort * colluding <= 2.0**-bits and _stays_whole(cohort, degree, corrupt, dropout, bits)


def confirmations_needed(cohort: int) -> int:
    """Signatures over one list of survivors: more than two thirds of the cohort, whatever the roster."""
    return 2 * cohort // 3 + 1


class Graph:
    """
    The cohort's graph of one round.

    Args:
        cohort: Client ids, in any order.
        degree: Neighbours of each; one less than there are clients: all others.
        context: Of the round; decides the order on the ring.
    """

    def __init__(self, cohort: Iterable[str], degree: int, context: bytes) -> None:
        self.cohort = tuple(sorted(set(cohort)))
        self.degree = degree
        self._numbers = {client: number for number, client in enumerate(self.cohort, 1)}
        self._is_complete = degree >= len(self.cohort) - 1
        self._ring = self.cohort if self._is_complete else ring_order(self.cohort, context)
        self._places = {client: place for place, client in enumerate(self._ring)}

    def number(self, client: str) -> int:
        """A client's number as a holder of shares: 1 for the first of the sorted cohort."""
        return self._numbers[client]

    def neighbours(self, client: str, among: Collection[str] | None = None) -> tuple[str, ...]:
        """
        A client's neighbours, sorted.

        Args:
            client: Of the cohort.
            among: Only those in it, such as the roster; None: all. Give a set where it is large.

        Raises:
            KeyError: The client is not of the cohort.
        """
        place, size = self._places[client], len(self._ring)
        found: Iterable[str]
        if self._is_complete:
            found = (other for other in self.cohort if other != client)
        else:
            half = self.degree // 2
            near = (*range(-half, 0), *range(1, half + 1))
            found = sorted({self._ring[(place + step) % size] for step in near} - {client})
        return tuple(other for other in found if among is None or other in among)

    def holders(self, client: str, among: Collection[str] | None = None) -> tuple[str, ...]:
        """A client and its neighbours, sorted: who has a share of its secrets. Args: as of ``neighbours``."""
        return tuple(sorted((client, *self.neighbours(client, among))))

    def is_connected(self, members: Collection[str]) -> bool:
        """Whether some clients of the cohort are one part of the graph; False of none."""
        left = set(members)
        if not left or self._is_complete:
            return bool(left)
        edge = [left.pop()]
        while edge:
            found = left.intersection(self.neighbours(edge.pop()))
            left -= found
            edge.extend(found)
        return not left


def ring_order(clients: Iterable[str], context: bytes) -> tuple[str, ...]:
    """Clients in the order in which they lie on the ring of a large cohort."""
    name = context.hex()

    def rank(client: str) -> tuple[bytes, str]:
        return hashlib.sha256(joined("fl-queue graph v1", name, client)).digest(), client

    return tuple(sorted(clients, key=rank))


def _safe_threshold(cohort: int, bad: int, degree: int) -> int | None:
    """The least threshold that hardly any client has colluding neighbours for; None: there is none."""
    tail, found = 0.0, None
    # From the far end, where the sum is smallest: no digit is lost.
    for threshold in range(degree + 1, 1, -1):
        tail += _exactly(cohort - 1, bad, degree, threshold)
        if cohort * tail > 2.0**-_SAFE_BITS:
            break
        found = threshold
    return found


def _stays_whole(cohort: int, degree: int, corrupt: float, dropout: float, bits: int) -> bool:
    """Whether the ring hardly falls apart: two runs of half the degree, all colluding or dropped out."""
    gone = math.floor(corrupt * cohort) + math.floor(dropout * cohort)
    ways = _log_choose(cohort - degree, gone - degree) - _log_choose(cohort, gone)
    return ways + math.log(cohort * cohort / 2) <= -bits * math.log(2)


def _at_least(whole: int, marked: int, drawn: int, fewest: int) -> float:
    """P[X >= fewest] for the number X of marked ones among so many that are drawn without replacement."""
    return sum(_exactly(whole, marked, drawn, count) for count in range(drawn, fewest - 1, -1))


def _at_most(whole: int, marked: int, drawn: int, most: int) -> float:
    """P[X <= most], as in ``_at_least``."""
    return sum(_exactly(whole, marked, drawn, count) for count in range(most + 1))


def _exactly(whole: int, marked: int, drawn: int, count: int) -> float:
    log = _log_choose(marked, count) + _log_choose(whole - marked, drawn - count)
    return math.exp(log - _log_choose(whole, drawn))


def _log_choose(of: int, count: int) -> float:
    if not 0 <= count <= of:
        return -math.inf
    return math.lgamma(of + 1) - math.lgamma(count + 1) - math.lgamma(of - count + 1)
