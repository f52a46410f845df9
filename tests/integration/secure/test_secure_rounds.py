"""Secure rounds with real Redis and real worker processes: the same bits as in clear, whoever drops out."""

from __future__ import annotations

from tests.support.federation import Federation

CLIENTS = 4
EVALUATOR = False

PLAIN = ("round.cohort=4",)
SECURE = ("secure.enabled=true", "secure.confirm=false")


def test_a_secure_run_has_the_bits_of_the_plain_one(federation: Federation) -> None:
    plain = federation.digests_of("same", *PLAIN)

    run = federation.begin("same", *PLAIN, *SECURE)

    assert federation.finish(run).state == "completed"
    assert federation.free(run) == plain
