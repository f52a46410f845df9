"""The data server lost in each stage of a secure round: the round goes on by itself, with the same bits."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tests.support.federation import wait_for
from tests.support.secure_federation import SECURE, SecureFederation, of_four

ROUND = (
    "round.cohort=4", "round.quorum=3", "run.rounds=1", "run.evaluate_every=0", "round.deadline_s=120",
    "round.grace_s=60", "security.require_enrolment=true",
)  # fmt: skip
LONG = (*SECURE, "secure.keys_s=100.0", "secure.unmask_s=100.0")


@pytest.fixture(scope="module")
def federation(
    tmp_path_factory: pytest.TempPathFactory, no_process_left: None
) -> Iterator[SecureFederation]:
    with of_four(tmp_path_factory.mktemp("federation")) as made:
        yield made


@pytest.fixture(scope="module")
def calm(federation: SecureFederation) -> list[str]:
    """Digests of the same run in clear."""
    return federation.digests_of("lost", *ROUND)


@pytest.mark.parametrize(
    ("point", "who"),
    [
        ("keys.pushed", "site-1_"),
        ("roster.frozen", "aggregator-"),
        ("reveal.noted", "site-1_"),
    ],
)
def test_a_round_goes_on_without_what_the_data_server_held(
    federation: SecureFederation, calm: list[str], point: str, who: str
) -> None:
    fired = federation.arm(point, "stop", who)
    run = federation.begin("lost", *ROUND, *LONG)
    wait_for(point, fired.exists)
    _lose(federation)
    os.kill(int(fired.read_text()), signal.SIGCONT)

    _ends_as_in_clear(federation, run, calm)


def test_survivors_that_are_frozen_after_the_clients_were_asked_again(
    federation: SecureFederation, calm: list[str]
) -> None:
    """The jobs that would have sent everything again are replaced by those that unmask."""
    fired = federation.arm("survivors.stored", "stop", "aggregator-")
    run = federation.begin("lost", *ROUND, *LONG)
    wait_for("the survivors", fired.exists)
    workers = [federation.worker_pid(site) for site in federation.clients]
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    _lose(federation)
    identity, rounds = federation.store.data.identity(), federation.store.control.rounds

    def is_asked() -> bool:
        current = rounds.get(run, 1)
        return current is not None and current.data_server == identity

    wait_for("the clients to be asked again", is_asked)
    os.kill(int(fired.read_text()), signal.SIGCONT)
    wait_for("the freeze", lambda: federation.store.control.stages.progress(run, 1).survivors)
    for pid in workers:
        os.kill(pid, signal.SIGCONT)

    _ends_as_in_clear(federation, run, calm)


def _lose(federation: SecureFederation) -> None:
    federation.redis.kill("data")
    federation.redis.restart("data")


def _ends_as_in_clear(federation: SecureFederation, run: str, calm: list[str]) -> None:
    state = federation.finish(run, 100)

    assert state.state == "completed", state.reason
    [record] = federation.committed(run)
    assert sorted(record.accepted) == federation.clients
    assert federation.free(run) == calm
