"""What ``status`` shows of a run that computes, evaluates or trains."""

from __future__ import annotations

from typing import Any

import pytest

from fl_queue.config.run_config import RunConfig
from fl_queue.coordinator.rounds import lifecycle, runs
from fl_queue.reporting import run_status
from fl_queue.store import Store, keyspace
from fl_queue.web import view_model

STATISTICS = {"run": {"task": "statistics"}, "task": {"numbers": ["age"], "quantiles": [0.5]}}
EVALUATION = {"run": {"task": "mnist-2nn", "purpose": "evaluate"}}
TRAINING = {"run": {"task": "mnist-2nn"}}


@pytest.mark.parametrize(
    ("config", "doing"),
    [
        (STATISTICS, "computing statistics"),
        (EVALUATION, "evaluating"),
        (TRAINING, "training"),
    ],
)
def test_a_run_between_rounds(store: Store, config: dict[str, Any], doing: str) -> None:
    """By its config, in the status and on the page; without an aggregator the reason is that."""
    state = runs.start_run(store, "cohort", RunConfig.from_dict(config), 2)
    assert runs.describe_state(store, state) == f"is {doing}: between rounds"
    assert run_status.run_status(store, state).doing.startswith(f"is {doing}: between rounds: no ")
    assert (
        view_model.headline(store, state, None, "cohort")
        == f"Run cohort is {doing}, between rounds."
    )


def test_the_step_of_an_analysis(store: Store) -> None:
    """With the largest number of them."""
    store.control.leases.hold(keyspace.client_holder("a"), "t", 60, {})
    made = RunConfig.from_dict({**STATISTICS, "run": {"task": "statistics", "preflight": "off"}})
    state = runs.start_run(store, "cohort", made, 2)
    lifecycle.advance(store, state.run_id)
    state = runs.find_run(store, "cohort")
    beginning = "is computing statistics: making version 0 on a, 0 of 1 "
    assert runs.describe_state(store, state).startswith(beginning)
    # As the round after it has it.
    store.control.redis.hset(keyspace.round_(state.run_id, state.round), "purpose", "sums")
    assert runs.describe_state(store, state).startswith(
        "is computing statistics: step 1 of at most 2, 0 of 1 "
    )
