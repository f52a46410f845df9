"""A fit that loses a site, and whose processes are killed between any two steps: the result has the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from fl_queue.config.analysis_catalog import ANALYSES
from fl_queue.config.run_config import RunConfig
from fl_queue.coordinator.operations import verification
from fl_queue.coordinator.rounds import lifecycle, runs
from fl_queue.store import keyspace
from fl_queue.store.embedded.server_pair import start
from tests.support import tiny_fit
from tests.support.federation import Federation, wait_for
from tests.support.server_binaries import chosen_server
from tests.support.table_sites import start_sites, table

POLICY = "max_questions = 1000\nmax_numbers = 100.0\n"
#: Three steps of two numbers each are what site-2 answers of 70 rows.
FEW = POLICY.replace("100.0", "0.09")
POINTS = (
    ("panel.shrunk", "aggregator"),
    ("checkpoint.written", "aggregator"),
    ("ledger.noted", "site-3"),
    ("update.pushed", "site-2"),
)


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory, no_process_left: None) -> Iterator[Federation]:
    """An aggregator and three sites, of which the second answers three steps of a fit and no more."""
    folder = tmp_path_factory.mktemp("fits")
    with (
        start(folder / "state", server=chosen_server()) as redis,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setitem(ANALYSES, "tiny-fit", tiny_fit.entry())
        environment = tiny_fit.ENVIRONMENT
        made = Federation(redis, folder, clients=0, environment=environment, evaluator=False)
        try:
            start_sites(made, [table(60, 1), table(70, 2), table(80, 3)], POLICY)
            (folder / "site-2.toml").write_text(FEW)
            yield made
        finally:
            made.close()


def begin(sites: Federation, name: str, quorum: int = 2, **task: Any) -> str:
    """Start a fit."""
    config = RunConfig.from_dict(
        {
            "run": {"task": "tiny-fit"},
            "round": {"cohort": 3, "quorum": quorum, "deadline_s": 90.0, "grace_s": 90.0},
            "model": {"keep_updates": True},
            "task": {"bound": 15.0, **task},
        }
    )
    state = runs.start_run(sites.store, name, config, config.run.rounds)
    lifecycle.advance(sites.store, state.run_id)
    return state.run_id


def ended(sites: Federation, run: str) -> tuple[list[str], Any]:
    """Digests of all states, and the panel but for its times."""
    state = sites.finish(run)
    assert state.state == "completed", state.reason
    assert state.panel is not None
    panel = state.panel.to_dict()
    for one in panel["lost"]:
        del one["at"], one["round"]
    digests = [entry["digest"] for entry in sites.store.control.versions.all(run).values()]
    sites.store.control.redis.hdel(keyspace.RUNS, state.name)
    return digests, panel


@pytest.fixture(scope="module")
def calm(sites: Federation) -> tuple[list[str], Any]:
    """Of an undisturbed run, each of whose states can be computed again."""
    run = begin(sites, "calm")
    found = ended(sites, run)
    state = sites.store.control.runs.get(run)
    assert state is not None
    made = list(verification.verify(sites.store, state, sites.redis.state_dir))
    assert {one.result for one in made} == {"same"}
    assert len(made) == state.version == state.rounds_wanted
    outcomes = [one.outcome for one in sites.store.control.history.records(run)]
    assert outcomes == ["committed"] * 3 + ["abandoned"] + ["committed"] * (len(made) - 3)
    return found


@pytest.mark.parametrize(("point", "whose"), POINTS)
def test_a_killed_process_changes_no_bit(
    sites: Federation, calm: tuple[list[str], Any], point: str, whose: str
) -> None:
    """The panel loses the same site at the same step."""
    fired = sites.arm(point, "kill", whose)
    run = begin(sites, f"killed-at-{point.replace('.', '-')}")
    assert ended(sites, run) == calm
    wait_for("the kill", fired.exists, 10)
    panel = calm[1]
    assert (panel["clients"], panel["quorum"]) == (("site-1", "site-3"), 2)
    [lost] = panel["lost"]
    assert (lost["client"], lost["step"]) == ("site-2", 4)
    assert "8 numbers of one fit are too many" in lost["reason"]


def test_the_last_clients_end_with_their_fit(sites: Federation) -> None:
    """Below the quorum it fails, and so it does where the config wants that."""
    states = [
        sites.finish(begin(sites, "below", quorum=3)),
        sites.finish(begin(sites, "fail", on_loss="fail")),
    ]
    assert {state.state for state in states} == {"failed"}
    assert [state.version for state in states] == [3, 3]
    assert states[0].reason.endswith("2 of 3 left, quorum 3")
    assert states[1].reason.endswith("2 of 3 left (task.on_loss = fail)")
