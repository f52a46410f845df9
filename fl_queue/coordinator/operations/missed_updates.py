"""
Clients whose job has finished and whose answer is nowhere: they are asked again.

What a finished job pushed is in the results list, on a taken list, or has a receipt. So once everything
that was taken has been looked at, who has no receipt has lost the answer: with the data server, or before
another one was known. The next attempt finds it in the outbox.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fl_queue.protocol import virtual_clients
from fl_queue.store import RoundState, Store
from fl_queue.store.jobs.dispatch import JobTicket

#: An aggregator that has taken elements and written no receipt for so long (counted time of the round)
#: has looked at all of them. If it was only slow, the answer comes twice and counts once.
LOOKED_AT_S = 10.0


@dataclass(frozen=True)
class _Seen:
    """Of a run: its round, what was held and the receipts there were, since when by counted time."""

    number: int
    held: int
    receipts: int
    since_s: float


class MissedUpdates:
    """Args: ``store``: both servers."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._runs: dict[str, _Seen] = {}

    def look(self, run: str, current: RoundState, finished: Sequence[JobTicket]) -> set[str]:
        """
        The ids of those jobs whose clients have to be asked again.

        Args:
            finished: Jobs of the round that have finished, read before this is called, so that what
                they pushed had been pushed. Those of them that have an answer by now are left out.
        """
        if not finished:
            return set()
        data = self._store.data
        waiting, held = data.results.count(run), data.taken.count(run, current.fence)
        # Last: what was neither waiting nor held has its receipt by now, or is lost.
        receipts = self._store.control.receipts.of_round(run, current.number)
        seen = self._runs.get(run)
        now = _Seen(current.number, held, len(receipts), current.elapsed_s)
        if waiting or seen is None or (seen.number, seen.held, seen.receipts) != (
            now.number, now.held, now.receipts
        ):  # fmt: skip
            self._runs[run] = seen = now
        at_rest = not waiting and current.elapsed_s - seen.since_s >= LOOKED_AT_S
        if not at_rest and waiting + held:
            return set()
        return {
            ticket.job
            for ticket in finished
            if not any(
                client in receipts
                for client in virtual_clients.answerable(ticket.who, current.cohort, current.groups)
            )
        }

    def forget(self, run: str) -> None:
        """A run that is not training any more."""
        self._runs.pop(run, None)
