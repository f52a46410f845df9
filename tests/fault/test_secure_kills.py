"""Every process of a secure round killed between any two of its steps (``secure_sum`` too): the same bits come out."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fl_queue.common import failpoints
from tests.support.federation import wait_for
from tests.support.secure_federation import SECURE, SecureFederation, of_four

#: What a client passes in a secure round, in order; on several sites, so that their restarts do not add up. What is
#: passed after it, when secrets are removed, is walked in ``tests/unit/secure/test_vault.py``.
OF_SITES = (
    ("site-1", ("round.noted", "roster.noted", "confirm.pushed")),
    ("site-2", ("keys.written", "share.noted", "reveal.noted")),
    ("site-3", ("keys.pushed", "update.masked", "shares.pushed")),
    ("site-4", ("runkey.made", "client.trained")),
)
AGGREGATOR = (
    "update.taken", "roster.stored", "roster.frozen", "survivors.stored", "survivors.frozen", "sum.unmasked",
    "checkpoint.written",
)  # fmt: skip
ROUND = (
    "round.cohort=4", "round.quorum=4", "run.rounds=1", "run.evaluate_every=0", "round.deadline_s=120",
    "security.require_enrolment=true",
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
    return federation.digests_of("points", *ROUND)


def _ends_as_in_clear(federation: SecureFederation, run: str, calm: list[str]) -> None:
    state = federation.finish(run, 150)
    assert state.state == "completed", state.reason
    [record] = federation.committed(run)
    assert record.round == 1
    assert sorted(record.accepted) == federation.clients
    assert federation.free(run) == calm


def test_sites_killed_at_each_of_their_steps(federation: SecureFederation, calm: list[str]) -> None:
    fired = [
        federation.arm(point, "kill-worker" if point == "client.trained" else "kill", f"{site}_")
        for site, points in OF_SITES
        for point in points
    ]
    run = federation.begin("points", *ROUND, *LONG)

    _ends_as_in_clear(federation, run, calm)
    wait_for("all points", lambda: all(each.exists() for each in fired), 60)


def test_an_aggregator_killed_at_each_of_its_steps(
    federation: SecureFederation, calm: list[str]
) -> None:
    fired = [federation.arm(point, "kill", "aggregator-") for point in AGGREGATOR]
    run = federation.begin("points", *ROUND, *LONG)

    _ends_as_in_clear(federation, run, calm)
    assert all(each.exists() for each in fired)


def test_an_aggregator_killed_as_it_puts_the_sum_in_place_of_masked_updates(
    federation: SecureFederation, calm: list[str]
) -> None:
    points = ("partial.stored", "partial.saved")
    fired = [federation.arm(point, "kill", "aggregator-") for point in points]
    overrides = ("redis.inline_bytes=0", "redis.unmerged_bytes=1")
    run = federation.begin("points", *ROUND, *LONG, *overrides)

    _ends_as_in_clear(federation, run, calm)
    assert all(each.exists() for each in fired)


def test_each_point_of_a_secure_round_is_walked() -> None:
    walked = {point for _, points in OF_SITES for point in points} | set(AGGREGATOR)
    assert walked <= failpoints.POINTS.keys()
