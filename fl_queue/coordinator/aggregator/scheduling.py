"""
Schedule open rounds over aggregator workers: idle rounds yield to rounds with something to do.

A round's aggregator job waits in the queue, or idles on a worker, until a message has arrived for it or its
time is up. There may be many more open rounds than workers.
"""

from __future__ import annotations

import time

from fl_queue.store import Store, keyspace
from fl_queue.store.jobs import dispatch

#: A busy round yields after this long, if another one has something to do.
TURN_S = 2.0
#: A round that holds a sum stays for this many times what it cost to take it over.
COST_FACTOR = 4.0
#: An aggregator checks this often that another round needs its worker.
CHECK_S = 1.0


class Turn:
    """
    An aggregator's time at one round, and whether another round should have the worker now.

    Args:
        store: Both servers.
        run: The round's.
        cost_s: Seconds to take the round over; to leave it and come back costs as much again.
    """

    def __init__(self, store: Store, run: str, cost_s: float = 0.0) -> None:
        self._store, self._run = store, run
        self._least_s = COST_FACTOR * cost_s
        self._began = time.monotonic()
        self._checked_at = float("-inf")

    def is_up(self) -> bool:
        """Whether a busy round yields: it has had its time, and another one has something to do."""
        return self._age() > max(TURN_S, self._least_s) and self._should_yield()

    def is_over(self, holds: bool, rang: str | None = None) -> bool:
        """
        Whether a round that has nothing to do yields.

        Args:
            holds: It has merged updates, which have to be handed over.
            rang: Run of which a message has just arrived; None: any, checked once per ``CHECK_S``.
        """
        if holds and self._age() < self._least_s:
            return False
        return self._should_yield() if rang is None else should_yield(self._store, self._run, rang)

    def _age(self) -> float:
        return time.monotonic() - self._began

    def _should_yield(self) -> bool:
        if time.monotonic() - self._checked_at < CHECK_S:
            return False
        self._checked_at = time.monotonic()
        return should_yield(self._store, self._run)


def requeue_next_round(store: Store, run: str) -> None:
    """
    Move the next round of a run, whose round has just ended, behind the rounds with something to do.

    It was published at the front of the queue, so that a run continues at once where no other run waits.
    """
    waiting = dispatch.queued(store, keyspace.AGGREGATE_QUEUE)
    own = [job for job in waiting if _run_of(job) == run]
    if own != waiting and should_yield(store, run):
        for job in own:
            dispatch.to_back(store, keyspace.AGGREGATE_QUEUE, job)


def should_yield(store: Store, run: str, only: str | None = None) -> bool:
    """
    Whether another run's round waits for a worker and has something to do; it is moved to the queue's front.

    Args:
        run: The run whose round is at work.
        only: Look at this run alone (of which a message has just arrived).
    """
    for job in dispatch.queued(store, keyspace.AGGREGATE_QUEUE):
        other = _run_of(job)
        if other == run or (only is not None and other != only):
            continue
        if _has_something_to_do(store, other):
            dispatch.to_front(store, keyspace.AGGREGATE_QUEUE, job)
            return True
    return False


def _run_of(job: str) -> str:
    """The run that an aggregator's job is for; the id is foreign text, and need not have the form."""
    return f"{job}__".split("_")[1]


def _has_something_to_do(store: Store, run: str) -> bool:
    if store.data.results.count(run):
        return True
    state = store.control.runs.get(run)
    current = (
        store.control.rounds.newest_open(state) if state is not None and state.active else None
    )
    if current is None:
        return True  # The round has ended; its aggregator exits on its next check.
    due_s = current.deadline_s
    if current.quorum_at_s is not None:
        due_s = min(due_s, current.quorum_at_s + current.grace_s)
    return current.elapsed_s >= due_s
