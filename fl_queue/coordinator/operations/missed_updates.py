"""
Find clients whose job has finished and whose update is lost, so that they are asked again.

The update of a finished job is in the results list, on a taken list, or has a receipt. Once all taken
messages are processed, a client without a receipt has lost its update with the data server. The next attempt
finds it in the outbox.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fl_queue.coordinator.operations import stage_answers
from fl_queue.protocol import virtual_clients
from fl_queue.store import RoundState, Store
from fl_queue.store.jobs.dispatch import JobTicket

#: An aggregator that has taken messages and written no receipt for this long (counted time of the round)
#: has processed them all. If it was only slow, the update comes twice and counts once.
LOOKED_AT_S = 10.0


@dataclass(frozen=True)
class _Seen:
    """The counts of a run at the last change: its round, taken messages and receipts, and the counted time."""

    number: int
    held: int
    receipts: int
    since_s: float


class MissedUpdates:
    """Finds jobs that finished although their update was lost. Args: ``store``: both servers."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._runs: dict[str, _Seen] = {}

    def look(self, run: str, current: RoundState, finished: Sequence[JobTicket]) -> set[str]:
        """
        Ids of the jobs whose clients have to be asked again.

        Args:
            finished: Jobs of the round that have finished, read before this call, so that their updates
                have been pushed. Jobs whose client has a receipt by now are left out.
        """
        if not finished:
            return set()
        data = self._store.data
        waiting, held = data.results.count(run), data.taken.count(run, current.fence)
        # Read last: a message that was neither waiting nor taken has its receipt by now, or is lost.
        receipts = stage_answers.of_round(self._store, run, current)
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
        """Forget a run that is not training any more."""
        self._runs.pop(run, None)
