"""A short chaos run, and each of its checks shown what it is there to find."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from fl_queue.coordinator.operations.verification import Verdict
from fl_queue.protocol.records import RoundRecord
from fl_queue.store import keyspace
from tests.fault.chaos import checks
from tests.fault.chaos.hits import WORKING, Hit
from tests.fault.chaos.plan import SENT, WEIGHTS, steps
from tests.fault.chaos.run import print_outcome, run_chaos
from tests.fault.chaos.watch import Sign, Training

CLIENTS = ["site-1", "site-2"]
#: A seed whose first eleven steps hit every role and eleven of the sixteen parts, and send four kinds of element.
BUSY = 2163


def record(number: int) -> RoundRecord:
    """Of a committed round of both clients."""
    return RoundRecord(
        round=number,
        purpose="train",
        outcome="committed",
        reason="",
        base_version=number - 1,
        base_digest="",
        cohort=CLIENTS,
        accepted={client: f"{client}-{number}" for client in CLIENTS},
        weights=dict.fromkeys(CLIENTS, 5),
    )


HISTORY = [record(1), record(2)]


@pytest.mark.timeout(900)
def test_a_run_survives_a_walk_of_kills_with_every_bit(tmp_path: Path) -> None:
    outcome = run_chaos(minutes=0.5, seed=BUSY, folder=tmp_path, clients=2)
    print_outcome(outcome)

    assert outcome.failures == []
    assert outcome.versions >= 4
    assert len(outcome.hits) >= 6
    assert all(hit.over_at for hit in outcome.hits)


@pytest.mark.slow  # As above with asynchronous rounds, whose kill points the suite walks.
@pytest.mark.timeout(900)
def test_an_asynchronous_run_survives_a_walk_of_kills(tmp_path: Path) -> None:
    outcome = run_chaos(minutes=1.5, seed=5, folder=tmp_path, mode="async")
    print_outcome(outcome)

    assert outcome.failures == []
    assert outcome.versions >= 6
    assert len(outcome.hits) >= 8


def test_the_walk_is_a_function_of_the_seed_and_leaves_nothing_out() -> None:
    walk = list(itertools.islice(steps(1), 400))

    assert walk == list(itertools.islice(steps(1), 400))
    assert walk != list(itertools.islice(steps(2), 400))
    assert {(step.role, step.part) for step in walk} == set(WEIGHTS)
    assert {step.send for step in walk} == {*SENT, ""}
    assert {step.action for step in walk if step.part == "all"} == {"stop"}
    assert any(step.action == "stop" and step.pause_s > 6 for step in walk)


def test_the_short_walk_of_the_suite_meets_every_role() -> None:
    walk = list(itertools.islice(steps(BUSY), 11))

    assert {step.role for step in walk} == {role for role, _ in WEIGHTS}
    assert len({(step.role, step.part) for step in walk}) == 11
    assert {step.send for step in walk} - {""} == set(SENT) - {"rubbish"}


def test_a_missing_second_or_abandoned_record_is_found() -> None:
    abandoned = replace(HISTORY[1], outcome="abandoned", reason="late")

    assert checks.one_record_per_round([1, 2], 2, HISTORY) == []
    assert "round 2 has 0" in checks.one_record_per_round([1, 2], 2, HISTORY[:1])[0]
    assert "round 2 has 2" in checks.one_record_per_round([1, 2], 2, [*HISTORY, HISTORY[1]])[0]
    assert "opened 2 times" in checks.one_record_per_round([1, 2, 2], 2, HISTORY)[0]
    assert "is not there" in checks.one_record_per_round([1], 1, HISTORY)[0]
    assert "abandoned" in checks.one_record_per_round([1, 2], 2, [HISTORY[0], abandoned])[0]


def test_a_second_closing_evaluation_is_found() -> None:
    once = replace(HISTORY[1], round=3, purpose="evaluate", base_version=2)

    assert checks.nothing_evaluated_twice([*HISTORY, once], "it") == []
    assert (
        "rounds [3, 4]" in checks.nothing_evaluated_twice([once, replace(once, round=4)], "it")[0]
    )


def test_an_update_merged_twice_or_exchanged_is_found() -> None:
    twice = replace(HISTORY[1], weights={"site-1": 10, "site-2": 5})
    other = replace(HISTORY[1], accepted={**HISTORY[1].accepted, "site-1": "another"})
    partial = replace(HISTORY[1], accepted={"site-1": "site-1-2"}, weights={"site-1": 5})

    assert checks.nothing_merged_twice(HISTORY, HISTORY, CLIENTS) == []
    for bad in (twice, other, partial):
        found = checks.nothing_merged_twice([HISTORY[0], bad], HISTORY, CLIENTS)
        assert found
        assert all("round 2" in line for line in found)


def test_a_job_merged_twice_or_too_few_of_them_are_found() -> None:
    began = {"site-2": {"round": 1, "version": 0}}
    first = replace(HISTORY[0], accepted={"site-1": "x"}, weights={"site-1": 5}, quorum=1)
    second = replace(HISTORY[1], mode="async", carried=began, quorum=2)
    third = replace(second, round=3, carried={"site-2": {"round": 2, "version": 1}})

    assert checks.no_job_merged_twice([first, second, replace(third, carried={})]) == []
    again = checks.no_job_merged_twice([HISTORY[0], second])
    assert again == ["round 2 merged site-2's job of round 1, as round 1 did"]
    assert "its buffer is 3" in checks.no_job_merged_twice([replace(second, quorum=3)])[0]
    assert checks.no_job_merged_twice([first, second, third]) == []


def test_a_version_of_other_updates_and_a_lost_state_are_found() -> None:
    good, bad = (Verdict(1, 1, result, "d") for result in ("same", "different"))
    lost = {"event": "client_state_missing", "run": "r", "round": 4, "what": "missing"}

    assert checks.versions_made_again([good]) == []
    assert "version 1 is different" in checks.versions_made_again([good, bad])[0]
    assert checks.no_state_missing([lost], "another") == []
    assert "round 4" in checks.no_state_missing([lost], "r")[0]


def test_training_after_the_answer_is_found() -> None:
    answered = {("site-1", 1): (1000.0, "its outbox had the update")}
    before, after = Training(900, "site-1", 1), Training(1001, "site-1", 1)

    assert (
        checks.nobody_trained_again([before, before, Training(2000, "site-1", 2)], answered) == []
    )
    assert "after its outbox" in checks.nobody_trained_again([before, after], answered)[0]


def test_another_bit_or_another_number_of_versions_is_found() -> None:
    versions = {0: {"digest": "a", "round": 0}, 1: {"digest": "b", "round": 1}}
    changed = {**versions, 1: {"digest": "c", "round": 1}}

    assert checks.same_bits(versions, versions) == []
    assert "version 1" in checks.same_bits(changed, versions)[0]
    assert "version 1" in checks.same_bits({0: versions[0]}, versions)[0]
    assert checks.same_bits({}, {})


def test_keys_that_are_left_are_found(redis_urls: tuple[str, str]) -> None:
    control, data = (redis.Redis.from_url(url) for url in redis_urls)
    run, calm = "chaos-aaaaaa", "chaos-bbbbbb"
    quiet = checks.common_traces(control, [run, calm])
    versions = {1: {"digest": "d" * 64, "round": 1}}
    data.set(keyspace.chunk(keyspace.model_blob(run, "d" * 64), 0), b"model")
    control.hset(keyspace.run(calm), "state", "completed")
    control.hset(keyspace.run(run), "state", "completed")
    control.hset(keyspace.late(run), "1", 1)
    control.set("rq:job:site-1_chaos-aaaaaa_1_0123abcd", "expires", ex=60)
    control.zadd("rq:finished:flq-client-site-1", {"site-1_chaos-aaaaaa_1_0123abcd": 1})

    def found() -> list[str]:
        mine = checks.more_than(checks.traces(control, run), checks.traces(control, calm), "calm")
        all_ = checks.common_traces(control, [run, calm])
        left = checks.data_leftovers(data, run, versions)
        return [*mine, *checks.more_than(all_, quiet, "quiet"), *left]

    assert found() == []
    data.set(keyspace.chunk(keyspace.update_blob("a", run, "e" * 64), 0), b"update")
    data.rpush(keyspace.results(run), b"element")
    assert len(found()) == 2
    control.hset(keyspace.round_rejected(run, 7), "stranger", "{}")
    assert len(found()) == 3
    control.hset(keyspace.round_(run, 7), "state", "committed")
    assert len(found()) == 3, "of a round that is kept: the round alone"
    control.zadd("rq:wip:flq-aggregate", {"aggregator_chaos-aaaaaa_7_4567cdef:99": 1})
    control.sadd("rq:workers", "rq:worker:client-site-1-89abcdef")
    assert len(found()) == 5


def test_a_process_that_is_left_is_found(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    environment = {**os.environ, "FLQ_CHAOS": "left"}
    process = subprocess.Popen(command, env=environment)
    try:
        found = checks.processes_left("FLQ_CHAOS=left", tmp_path, 0.2)
    finally:
        process.kill()
        process.wait()

    assert [line.split()[2] for line in found] == [str(process.pid)]
    assert checks.processes_left("FLQ_CHAOS=left", tmp_path, 1.0) == []


def test_only_what_shows_the_victim_at_work_ends_a_recovery() -> None:
    def recovered(hit: Hit, *signs: Sign) -> float | None:
        for sign in signs:
            hit.take(sign)
        return hit.recovered_s

    def killed(part: str, moment: str = "training") -> Hit:
        return Hit("client", part, "kill", "site-1", "site-1", moment, at=9, pid=7, over_at=10)

    before, lease = Sign("site-1", "work", 9.9), Sign("site-1", "lease", 11, 7)
    other, new = Sign("site-2", "work", 11), Sign("site-1", "new lease", 13, 8)
    answer = Sign("site-1", "answer", 14)
    assert recovered(killed("worker"), before, other, lease) is None
    assert recovered(killed("worker"), before, other, lease, new) == 3
    for part in WORKING:
        assert recovered(killed(part), lease, new, answer) == 4
        assert recovered(killed(part, "pushing"), lease, new, answer) is None
    alone = {part: killed(part).is_shown_by_work_alone for part in (*WORKING, "worker")}
    assert alone == {**dict.fromkeys(WORKING, True), "worker": False}
    assert replace(killed("server"), role="data").is_shown_by_work_alone
    assert not replace(killed("server"), role="control").is_shown_by_work_alone
    stopped = replace(killed("worker"), action="stop")
    assert recovered(stopped, lease) == 1


def test_more_of_a_pattern_than_allowed_is_found() -> None:
    found = checks.more_than(Counter({"a": 2, "b": 1}), Counter({"a": 1, "b": 1}), "the calm run")

    assert found == ["control server: 2 x a, the calm run has 1"]
