"""A run to try laws and repairs on, without workers."""

from __future__ import annotations

import pytest

from fl_queue.config import loading
from fl_queue.coordinator.rounds import lifecycle, runs
from fl_queue.store import Store, keyspace


@pytest.fixture
def run(store: Store) -> str:
    """A run with round 0 open on the only client there is."""
    store.control.leases.hold(keyspace.client_holder("a"), "t", 60, {})
    loaded = loading.load("mnist-3v7", ("round.cohort=1",), {})
    state = runs.start_run(store, "lawful", loaded, 1)
    lifecycle.advance(store, state.run_id)
    return state.run_id
