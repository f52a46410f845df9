"""
Virtual clients: who they are, and how a round's cohort is cut into groups, one job each.

A simulation's clients are ``sim-<number>``, all of them, always: none registers. What is recorded
of them is the compact form ``sim-001..sim-100``. How a cohort is grouped decides who trains whom, and
no bit of the result. No Redis here.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

from fl_queue.protocol import identifiers

Found = TypeVar("Found")

#: Members of a group in a large cohort: what one job costs is shared by so many, and no more than
#: their training is at stake when a process dies.
GROUP_SIZE = 16
_GROUP = "group-"
#: No client is enrolled under a name that begins so: it would be taken for one of these.
SHARED = (identifiers.VIRTUAL, _GROUP)
_SPAN = re.compile(rf"{identifiers.VIRTUAL}(\d+)\.\.{identifiers.VIRTUAL}(\d+)")


def client(number: int, count: int) -> str:
    """The id of one of ``count`` virtual clients, by its number from 1."""
    return f"{identifiers.VIRTUAL}{number:0{len(str(count))}d}"


def clients(count: int) -> list[str]:
    """The ids of all virtual clients, in the order of their numbers, which is the sorted order."""
    # One format for all: there may be a hundred thousand, at each round's opening.
    form = f"{identifiers.VIRTUAL}%0{len(str(count))}d"
    return [form % number for number in range(1, count + 1)]


def compact(count: int) -> list[str]:
    """Record in place of all their names: one entry, ``sim-001..sim-100``."""
    return [f"{client(1, count)}..{client(count, count)}"]


def share_of(client: str, population: Sequence[str]) -> int:
    """
    Which share of a split data set is a client's, from 0.

    Args:
        population: The run's, in the order of shares; a simulation's in its compact form.

    Returns:
        The number of shares when the client has none.
    """
    span = _SPAN.fullmatch(population[0]) if len(population) == 1 else None
    if span is None:
        return population.index(client) if client in population else len(population)
    number = client.removeprefix(identifiers.VIRTUAL)
    is_one = _is_number(number) and len(number) == len(span[2]) and 1 <= int(number) <= int(span[2])
    return int(number) - 1 if is_one else int(span[2])


# Groups


def group_count(cohort: int, processes: int) -> int:
    """
    Into how many groups a cohort is cut, 1 or more.

    One for each process, so that all are done at the same time; of a large cohort more, each of
    about ``GROUP_SIZE``, as many for each process.
    """
    if cohort <= GROUP_SIZE // 2 * processes:
        return max(1, min(cohort, processes))
    return processes * -(-cohort // (GROUP_SIZE * processes))


def group(number: int) -> str:
    """A group's name in tickets and job ids."""
    return f"{_GROUP}{number}"


def group_number(who: str) -> int | None:
    """The number of a group, from 0; None when the name is not a group's."""
    number = who.removeprefix(_GROUP)
    return int(number) if who != number and _is_number(number) else None


def _is_number(text: str) -> bool:
    # Not ``isdigit`` alone: that is true of a superscript, too, which is no number to ``int``.
    return text.isascii() and text.isdigit()


def members(cohort: Sequence[str], groups: int, number: int) -> Sequence[str]:
    """The clients of one group: the consecutive part of the sorted cohort, sizes differ by one."""
    return cohort[number * len(cohort) // groups : (number + 1) * len(cohort) // groups]


def answerable(who: str, cohort: Sequence[str], groups: int) -> Sequence[str]:
    """For whom the job of ``who`` answers: a group's members, or the client itself."""
    number = group_number(who) if groups else None
    return [who] if number is None else members(cohort, groups, number)


def job_of(client: str, cohort: Sequence[str], groups: int) -> str:
    """Whose job a client's is: its group's, or its own."""
    place = bisect.bisect_left(cohort, client)  # A cohort is sorted.
    if not groups or place == len(cohort) or cohort[place] != client:
        return client
    # The last group that begins at or before the client.
    return group(((place + 1) * groups - 1) // len(cohort))


def ticket_of(
    client: str, tickets: Mapping[str, Found], cohort: Sequence[str], groups: int
) -> Found | None:
    """A client's ticket in a round: its group's, or its own; None when there is none."""
    return tickets.get(job_of(client, cohort, groups))
