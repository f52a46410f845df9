"""Secure rounds with real Redis and real worker processes: the same bits as in clear, whoever drops out."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from fl_queue.protocol.records import Verdict
from fl_queue.protocol.secure_state import Stage
from fl_queue.store.embedded import server_pair
from tests.support.federation import Federation, wait_for
from tests.support.secure_federation import SECURE, SecureFederation
from tests.support.server_binaries import chosen_server

PLAIN = (
    "round.cohort=4", "round.quorum=3", "run.rounds=2", "security.require_enrolment=true",
    "round.grace_s=0.2",
)  # fmt: skip


@pytest.fixture(scope="module")
def federation(
    tmp_path_factory: pytest.TempPathFactory, no_process_left: None
) -> Iterator[SecureFederation]:
    folder = tmp_path_factory.mktemp("federation")
    with server_pair.start(folder / "state", server=chosen_server()) as redis:
        made = SecureFederation(redis, folder, 4)
        try:
            yield made
        finally:
            made.close()


def _stage(federation: Federation, run: str, number: int) -> str:
    current = federation.store.control.rounds.get(run, number)
    return "" if current is None or current.secure is None else current.secure.stage


def test_a_secure_run_has_the_bits_of_the_plain_one(federation: SecureFederation) -> None:
    plain = federation.digests_of("same", *PLAIN, "round.quorum=4")

    run = federation.begin("same", *PLAIN, *SECURE, "round.quorum=4")

    assert federation.finish(run).state == "completed"
    history = federation.store.control.history.records(run)
    assert [sorted(record.accepted) for record in history] == [federation.clients] * 2
    assert set(history[0].weights.values()) == {0}
    assert history[0].secure["weight"] > 0
    assert history[0].validation["num_examples"] > 0
    assert federation.free(run) == plain
