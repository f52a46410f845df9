"""A site's training process from round to round: it stays, it is replaced, and no bit shows which."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fl_queue.client import reload
from fl_queue.protocol.records import TRAINER_JOB
from fl_queue.store.embedded.server_pair import start
from tests.conftest import chosen_server
from tests.support.federation import Federation, kill, wait_for

ROUNDS = ("run.rounds=4", "round.cohort=2", "run.evaluate_every=0")


@pytest.fixture(scope="module")
def federation(
    tmp_path_factory: pytest.TempPathFactory, no_process_left: None
) -> Iterator[Federation]:
    """Two sites: the training process of the first stays, as by default; the second has a fresh one for each job."""
    folder = tmp_path_factory.mktemp("trainers")
    with start(folder / "state", server=chosen_server()) as redis:
        made = Federation(redis, folder, 0, evaluator=False)
        try:
            made.start("site-1")
            made.start("site-2", "--trainer-jobs", "1")
            made.clients = ["site-1", "site-2"]
            wait_for("workers", lambda: len(made.store.control.workers.living()) == 3, 120)
            yield made
        finally:
            made.close()


def pids(federation: Federation, run: str) -> dict[str, set[int]]:
    """Client -> the training processes that were seen until a run ended."""
    seen: dict[str, set[int]] = {client: set() for client in federation.clients}

    def ended() -> bool:
        for client in federation.clients:
            seen[client].update(federation.trainers(client))
        state = federation.store.control.runs.get(run)
        return state is not None and not state.active

    wait_for("the run to end", ended, 180)
    return seen


def job_numbers(federation: Federation, run: str, number: int) -> dict[str, Any]:
    """Client -> number of its job of a round in the life of its process."""
    receipts = federation.store.control.receipts.of_round(run, number)
    return {client: receipt.environment[TRAINER_JOB] for client, receipt in receipts.items()}


def test_a_process_that_stays_and_fresh_ones_give_the_same_bits(federation: Federation) -> None:
    run = federation.begin("resident", *ROUNDS)
    seen = pids(federation, run)
    # Receipts are kept for the last two rounds: the fourth, and the evaluation of the last version.
    numbers = [job_numbers(federation, run, number) for number in (4, 5)]
    calm = federation.free(run)
    # The other way round: what stays is killed in the middle, and reloaded.
    again = federation.begin("resident", *ROUNDS)
    federation.reach(again, 2)
    kill(wait_for("a training process", lambda: federation.trainers("site-1"))[0])
    reload.wish(Path(federation.redis.state_dir), "site-2")
    assert federation.finish(again, 180).state == "completed"

    assert len(seen["site-1"]) == 1
    assert len(seen["site-2"]) >= 2
    # Before them the facts and three rounds, and version 0 by one of both.
    stayed = [jobs["site-1"] for jobs in numbers]
    assert [job - stayed[0] for job in stayed] == [0, 1]
    assert stayed[0] >= 5
    assert [jobs["site-2"] for jobs in numbers] == [1, 1]
    assert federation.free(again) == calm


def test_a_reload_replaces_the_process_before_the_next_job(federation: Federation) -> None:
    first = federation.begin("before", "run.rounds=1", *ROUNDS[1:])
    assert federation.finish(first, 120).state == "completed"
    old = set(federation.trainers("site-1"))
    reload.wish(Path(federation.redis.state_dir), "site-1")
    second = federation.begin("after", "run.rounds=1", *ROUNDS[1:])
    new = pids(federation, second)["site-1"]

    assert old
    assert new - old
    assert not set(federation.trainers("site-1")) & old
