"""Removal of a client's answers of ended rounds, and before them of its secrets. Without torch."""

from __future__ import annotations

from functools import partial

from fl_queue.client import outbox, unknown_runs
from fl_queue.client.site import WorkerSettings
from fl_queue.store import Store


def sweep(store: Store, site: WorkerSettings, who: str) -> int:
    """
    Remove what a client has kept of rounds and runs that are over.

    Returns:
        How many answers are left.
    """
    may_go = unknown_runs.may_go(store.control, site.state_dir)
    if (site.state_dir / "secure").is_dir():
        # Sites without secure rounds do not wait for this import, which takes numpy.
        from fl_queue.secure.vault import Vault

        Vault(site.state_dir, who).sweep(
            lambda run, number: may_go(run, number, who), partial(_is_over, store, site)
        )
    return outbox.sweep(site.outbox, who, may_go)


def _is_over(store: Store, site: WorkerSettings, run: str) -> bool:
    """Whether a run asks for nothing any more: it is not training, or is gone for good."""
    state = store.control.runs.get(run)
    if state is not None:
        return not state.active
    return unknown_runs.UnknownRuns(store.control, site.state_dir).is_gone(run)
