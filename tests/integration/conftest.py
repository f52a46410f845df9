"""A run to try laws and repairs on, without workers."""

from __future__ import annotations

import pytest

from fl_queue import config, names, rounds, runs
from fl_queue.store import Store


@pytest.fixture
def run(store: Store) -> str:
    """A run with round 0 open on the only client there is."""
    store.control.hold(names.client_holder("a"), "t", 60, {})
    loaded = config.load("mnist-3v7", ("round.cohort=1",), {})
    state = runs.start_run(store, "lawful", loaded, 1)
    rounds.advance(store, state.run_id)
    return state.run_id
