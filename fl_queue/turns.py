"""
Which round an aggregator worker should be at: rounds with nothing to do make way for those with something.

A round's aggregator job waits in the queue, or idles on a worker, until something has arrived for it
or its time is up. There may be many more open rounds than workers.
"""

from __future__ import annotations

from fl_queue import dispatch, names
from fl_queue.store import Store


def wanted(store: Store, mine: str, only: str | None = None) -> bool:
    """
    Whether another run's round waits for a worker and has something to do; it is next in the queue then.

    Args:
        mine: The run whose round is at work.
        only: Look at this run alone (of which an element has just arrived).
    """
    for job in dispatch.queued(store, names.AGGREGATE_QUEUE):
        _, _, rest = job.partition("_")
        run = rest.split("_")[0]
        if run == mine or (only is not None and run != only):
            continue
        if _has_something_to_do(store, run):
            dispatch.to_front(store, names.AGGREGATE_QUEUE, job)
            return True
    return False


def _has_something_to_do(store: Store, run: str) -> bool:
    if store.data.waiting(run):
        return True
    state = store.control.run(run)
    current = store.control.open_round(state) if state is not None and state.active else None
    if current is None:
        return True  # It will find that out, and be gone.
    due_s = current.deadline_s
    if current.quorum_at_s is not None:
        due_s = min(due_s, current.quorum_at_s + current.grace_s)
    return current.elapsed_s >= due_s
