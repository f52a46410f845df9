"""A fit with real sites: it ends with its first result, and with the sentence of an error."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest

from fl_queue.config.analysis_catalog import ANALYSES
from fl_queue.config.run_config import RunConfig
from fl_queue.coordinator.rounds import lifecycle, runs
from fl_queue.errors import RunFailed
from fl_queue.reporting import analysis_result
from fl_queue.store.embedded.server_pair import start
from tests.support import tiny_fit
from tests.support.federation import Federation
from tests.support.server_binaries import chosen_server
from tests.support.table_sites import start_sites, table

TABLES = [table(rows, seed) for seed, rows in enumerate((60, 70, 80))]


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory, no_process_left: None) -> Iterator[Federation]:
    """An aggregator and three sites with a table each, which know the fit of the tests."""
    folder = tmp_path_factory.mktemp("fits")
    with (
        start(folder / "state", server=chosen_server()) as redis,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setitem(ANALYSES, "tiny-fit", tiny_fit.entry())
        made = Federation(
            redis, folder, clients=0, environment=tiny_fit.ENVIRONMENT, evaluator=False
        )
        try:
            start_sites(made, TABLES, "max_questions = 1000\n")
            yield made
        finally:
            made.close()


def begin(sites: Federation, name: str, **task: object) -> str:
    """Start a fit at these sites."""
    config = RunConfig.from_dict(
        {
            "run": {"task": "tiny-fit"},
            "round": {"cohort": 3, "deadline_s": 60.0},
            "model": {"keep_updates": True},
            "task": task,
        }
    )
    state = runs.start_run(sites.store, name, config, config.run.rounds)
    lifecycle.advance(sites.store, state.run_id)
    return state.run_id


def test_it_ends_with_the_first_result(sites: Federation) -> None:
    """Before the largest number of steps; continued, it is still complete."""
    run = begin(sites, "first")
    state = sites.finish(run)
    assert state.state == "completed", state.reason
    found = analysis_result.read(sites.store, state)
    ages = pd.concat(TABLES)["age"]
    assert found["mean"] == pytest.approx(np.mean(ages), abs=1e-5)
    assert (found["rows"], found["steps"]) == (210, state.version)
    assert state.rounds_wanted == state.version < 40
    again = runs.start_run(sites.store, "first", runs.current_config(sites.store, run), 1)
    lifecycle.advance(sites.store, run)
    state = sites.finish(run)
    assert (state.state, state.version) == ("completed", again.version)


def test_an_error_of_the_fit_ends_its_run(sites: Federation) -> None:
    """At once, with the sentence; the step is not made again."""
    run = begin(sites, "error", fails_at=3)
    state = sites.finish(run)
    assert (state.state, state.version) == ("failed", 2)
    sentence = "column age has no mean, as the test wishes"
    assert state.reason == sentence
    with pytest.raises(RunFailed, match=sentence):
        runs.raise_unless_completed(state)
    assert [one.outcome for one in sites.store.control.history.records(run)] == [
        "committed", "committed", "abandoned",
    ]  # fmt: skip


def test_a_fit_without_a_result_fails(sites: Federation) -> None:
    """After its last step."""
    state = sites.finish(begin(sites, "endless", most=2))
    assert (state.state, state.version, state.reason) == ("failed", 1, "no result in 2 steps")
