"""Every process killed between any two steps of a round of sums (``step_intake``): the result has the same bits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fl_queue.client.ledger import Ledger
from fl_queue.config import loading
from fl_queue.coordinator.rounds import lifecycle, runs
from fl_queue.reporting import analysis_result
from fl_queue.store import keyspace
from fl_queue.store.embedded.server_pair import start
from tests.support.federation import Federation, wait_for
from tests.support.server_binaries import chosen_server
from tests.support.table_sites import config_file, start_sites, table

CLIENT = ("rows.read", "ledger.noted", "client.trained", "outbox.written", "update.pushed")
AGGREGATOR = (
    "aggregator.claimed", "update.taken", "update.received", "round.decided", "model.published",
    "checkpoint.written", "round.committed", "round.advanced",
)  # fmt: skip


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory, no_process_left: None) -> Iterator[Federation]:
    """An aggregator and two sites with a table each."""
    folder = tmp_path_factory.mktemp("sums")
    with start(folder / "state", server=chosen_server()) as redis:
        made = Federation(redis, folder, clients=0, evaluator=False)
        try:
            start_sites(made, [table(80, 1), table(120, 2)], "max_questions = 1000\n")
            yield made
        finally:
            made.close()


def _begin(sites: Federation, name: str) -> str:
    config = loading.load(str(config_file(sites.folder, 2)))
    state = runs.start_run(sites.store, name, config, config.run.rounds)
    lifecycle.advance(sites.store, state.run_id)
    return state.run_id


def _result(sites: Federation, run: str) -> tuple[list[str], dict[str, object]]:
    """Digests of all states, and the result but for the run's name."""
    state = sites.finish(run)
    assert state.state == "completed", state.reason
    found = analysis_result.read(sites.store, state)
    del found["run"]
    digests = [entry["digest"] for entry in sites.store.control.versions.all(run).values()]
    sites.store.control.redis.hdel(keyspace.RUNS, state.name)
    return digests, found


@pytest.fixture(scope="module")
def calm(sites: Federation) -> tuple[list[str], dict[str, object]]:
    """Digests and result of an undisturbed run."""
    return _result(sites, _begin(sites, "calm"))


@pytest.mark.parametrize(
    ("point", "whose"),
    [*((point, "site-") for point in CLIENT), *((point, "aggregator") for point in AGGREGATOR)],
)
def test_a_killed_process_changes_no_bit(
    sites: Federation, calm: tuple[list[str], dict[str, object]], point: str, whose: str
) -> None:
    """The round goes on with a new process; a question that was noted is not counted again."""
    fired = sites.arm(point, "kill", whose)
    run = _begin(sites, f"killed-at-{point.replace('.', '-')}")
    assert _result(sites, run) == calm
    wait_for("the kill", fired.exists, 10)
    entries = [entry for entry in Ledger(sites.redis.state_dir).entries() if entry.run_id == run]
    assert sorted((entry.client, entry.round) for entry in entries) == [
        (f"site-{site}", number) for site in (1, 2) for number in (1, 2)
    ]
