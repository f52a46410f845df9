"""
Which round an aggregator worker should be at: rounds with nothing to do make way for those with something.

A round's aggregator job waits in the queue, or idles on a worker, until something has arrived for it
or its time is up. There may be many more open rounds than workers.
"""

from __future__ import annotations

import time

from fl_queue.store import Store, keyspace
from fl_queue.store.jobs import dispatch

#: A round that has been busy for this long gives way to one that has something to do, too.
TURN_S = 2.0
#: A round that holds a sum stays for so many times what it cost to take it over.
COSTS = 4.0
#: An aggregator asks this often whether another round wants its worker.
ASK_S = 1.0


class Turn:
    """
    An aggregator's time at one round, and whether another round should have the worker now.

    Args:
        run: Whose round it is.
        cost_s: What taking the round over has cost; leaving it, and coming back, costs as much again.
    """

    def __init__(self, store: Store, run: str, cost_s: float = 0.0) -> None:
        self._store, self._run = store, run
        self._least_s = COSTS * cost_s
        self._began = time.monotonic()
        self._asked = float("-inf")

    def is_up(self) -> bool:
        """Whether a busy round makes way: it has had its time, and another one has something to do."""
        return self._age() > max(TURN_S, self._least_s) and self._is_wanted()

    def is_over(self, holds: bool, rang: str | None = None) -> bool:
        """
        Whether a round that has nothing to do makes way.

        Args:
            holds: It has merged something, which has to be handed over.
            rang: Run of which an element has just arrived; None: any, looked for once a second.
        """
        if holds and self._age() < self._least_s:
            return False
        return self._is_wanted() if rang is None else wanted(self._store, self._run, rang)

    def _age(self) -> float:
        return time.monotonic() - self._began

    def _is_wanted(self) -> bool:
        if time.monotonic() - self._asked < ASK_S:
            return False
        self._asked = time.monotonic()
        return wanted(self._store, self._run)


def end(store: Store, mine: str) -> None:
    """
    A round of a run has ended: its next one takes its place behind those that have something to do.

    It was published at the front of the queue, as a run goes on at once where nobody else waits.
    """
    waiting = dispatch.queued(store, keyspace.AGGREGATE_QUEUE)
    own = [job for job in waiting if _run_of(job) == mine]
    if own != waiting and wanted(store, mine):
        for job in own:
            dispatch.to_back(store, keyspace.AGGREGATE_QUEUE, job)


def wanted(store: Store, mine: str, only: str | None = None) -> bool:
    """
    Whether another run's round waits for a worker and has something to do; it is next in the queue then.

    Args:
        mine: The run whose round is at work.
        only: Look at this run alone (of which an element has just arrived).
    """
    for job in dispatch.queued(store, keyspace.AGGREGATE_QUEUE):
        run = _run_of(job)
        if run == mine or (only is not None and run != only):
            continue
        if _has_something_to_do(store, run):
            dispatch.to_front(store, keyspace.AGGREGATE_QUEUE, job)
            return True
    return False


def _run_of(job: str) -> str:
    """The run that an aggregator's job is for; anybody may have written the id."""
    return f"{job}__".split("_")[1]


def _has_something_to_do(store: Store, run: str) -> bool:
    if store.data.results.count(run):
        return True
    state = store.control.runs.get(run)
    current = (
        store.control.rounds.newest_open(state) if state is not None and state.active else None
    )
    if current is None:
        return True  # It will find that out, and be gone.
    due_s = current.deadline_s
    if current.quorum_at_s is not None:
        due_s = min(due_s, current.quorum_at_s + current.grace_s)
    return current.elapsed_s >= due_s
