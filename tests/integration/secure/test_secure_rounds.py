"""
Secure rounds with real Redis and real worker processes: the same bits as in clear, with any drop-outs.

Through ``secure_job``, ``secure_rounds`` and ``sweeping`` at the sites; ``secure_opening``, ``secure_intake``, ``secure_stages``, ``round_records``,
``stage_answers``, ``round_view``, ``merging`` and ``secure_verification`` at the operator's; and what they write: ``stages``, ``secure_records``.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator

import pytest

from fl_queue.coordinator.operations.verification import Verdict, verify
from fl_queue.coordinator.rounds.runs import describe_state
from fl_queue.protocol.records import RoundRecord
from tests.support.federation import wait_for
from tests.support.secure_federation import SECURE, SecureFederation, of_four

PLAIN = (
    "round.cohort=4", "round.quorum=3", "run.rounds=2", "security.require_enrolment=true",
    "round.grace_s=0.2",
)  # fmt: skip


@pytest.fixture(scope="module")
def federation(
    tmp_path_factory: pytest.TempPathFactory, no_process_left: None
) -> Iterator[SecureFederation]:
    with of_four(tmp_path_factory.mktemp("federation"), forked=True) as made:
        yield made


def _words(federation: SecureFederation, run: str, wanted: str) -> str:
    """What ``status`` shows of a run (``stage_words``), once it has some words."""
    state = federation.store.control.runs.get(run)
    assert state is not None
    words = describe_state(federation.store, state)
    return words if wanted in words else ""


def test_a_secure_run_has_the_bits_of_the_plain_one(federation: SecureFederation) -> None:
    plain = federation.digests_of("same", *PLAIN, "round.quorum=4")

    run = federation.begin("same", *PLAIN, *SECURE, "round.quorum=4")
    words = wait_for("the second stage", lambda: _words(federation, run, "stage updates"))

    assert re.search(r"secure round \d, stage updates: \d of 4 masked updates in, quorum 4", words)
    assert federation.finish(run).state == "completed"
    history = federation.store.control.history.records(run)
    assert [sorted(record.accepted) for record in history] == [federation.clients] * 2
    assert set(history[0].weights.values()) == {0}
    assert history[0].secure["weight"] > 0
    assert history[0].validation["num_examples"] > 0
    assert federation.free(run) == plain


def _without_site_1(
    federation: SecureFederation, point: str, *overrides: str
) -> tuple[RoundRecord, list[str]]:
    """The record and the digests of a run of one round in which a site's machine goes away for good at a point."""
    fired = federation.arm(point, "kill-supervisor", "site-1_")
    run = federation.begin("short", *PLAIN, "run.rounds=1", *overrides)
    wait_for(point, fired.exists)
    federation.processes["site-1"].wait(10)
    try:
        assert federation.finish(run).state == "completed"
        [record] = federation.committed(run)
        return record, federation.free(run)
    finally:
        federation.start("site-1")


def _verified(federation: SecureFederation) -> Verdict:
    """What ``verify`` finds of round 1 of the newest run."""
    newest = max(
        (path for path in (federation.redis.state_dir / "updates").glob("short-*")),
        key=lambda path: path.stat().st_mtime,
    )
    state = federation.store.control.runs.get(newest.name)
    assert state is not None
    [found] = verify(federation.store, state, federation.redis.state_dir)
    return found


@pytest.fixture(scope="module")
def of_three(federation: SecureFederation) -> list[str]:
    """Digests of a run in clear that one of the four sites has left."""
    record, digests = _without_site_1(federation, "client.trained")
    assert sorted(record.accepted) == federation.clients[1:]
    return digests


def test_a_site_without_keys_in_time_is_not_in_the_roster(
    federation: SecureFederation, of_three: list[str]
) -> None:
    record, digests = _without_site_1(federation, "round.noted", *SECURE, "secure.keys_s=1.0")

    assert digests == of_three
    assert record.secure["dropped"] == []


def test_a_site_that_goes_after_its_keys_is_dropped_and_its_masks_are_taken_off(
    federation: SecureFederation, of_three: list[str]
) -> None:
    record, digests = _without_site_1(
        federation, "client.trained", *SECURE, "model.keep_updates=true"
    )

    assert digests == of_three
    assert record.secure["dropped"] == ["site-1"]
    found = _verified(federation)
    assert (found.result, found.recomputed) == ("same", digests[1])
    assert list(found.signed) == federation.clients[1:]
    # Without masks taken off, with another update, with another secret: nothing of it is the same.
    folder = next((federation.redis.state_dir / "updates").glob("short-*/1"))
    for path, reason in (
        (folder / "transcript.json", "digest"),
        (next(folder.glob("*.update")), "damaged"),
    ):
        whole = path.read_bytes()
        path.write_bytes(whole[:-40] + bytes(8) + whole[-32:])
        assert reason in _verified(federation).reason
        path.write_bytes(whole)


def test_a_site_that_goes_after_its_update_survives(federation: SecureFederation) -> None:
    whole = federation.digests_of("short", *PLAIN, "run.rounds=1", "round.quorum=4")

    record, digests = _without_site_1(federation, "update.pushed", *SECURE, "round.grace_s=60")

    assert sorted(record.accepted) == federation.clients
    assert digests == whole


def test_too_few_answers_end_the_round_with_the_names_of_the_silent(
    federation: SecureFederation,
) -> None:
    fired = federation.arm("survivors.frozen", "stop")
    run = federation.begin(
        "silent", *PLAIN, *SECURE, "run.rounds=1", "secure.unmask_s=1.0", "round.max_abandoned=1"
    )
    wait_for("the survivors to be frozen", fired.exists)
    for site in ("site-1", "site-2"):
        for pid in (federation.processes[site].pid, federation.worker_pid(site)):
            os.kill(pid, signal.SIGKILL)
        federation.processes[site].wait(10)
    os.kill(int(fired.read_text()), signal.SIGCONT)
    state = federation.finish(run)
    for site in ("site-1", "site-2"):
        federation.start(site)

    assert state.state == "failed"
    # Both may have signed before they were killed, and revealed nothing.
    assert re.search("unmasking needs 3 (signatures|answers)", state.reason)
    assert "site-1, site-2" in state.reason
