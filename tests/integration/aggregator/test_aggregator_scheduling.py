"""Many open rounds and few aggregators: each round with work gets a worker, and no round starves."""

from __future__ import annotations

from pathlib import Path

import pytest

from fl_queue.coordinator.aggregator import collection, scheduling
from fl_queue.coordinator.aggregator.collector import RoundAggregator
from fl_queue.coordinator.operations import controls, healer
from fl_queue.store import Store, keyspace
from fl_queue.store.jobs import dispatch
from tests.support.federation import Federation, wait_for
from tests.support.manual_run import ManualRun

CLIENTS = 1
FORKED = True
RUNS = 10
QUEUE = f"rq:queue:{keyspace.AGGREGATE_QUEUE}"
#: One step on a hundred images; nothing may be waited for that long.
#: Sites are not asked before the first round: the question would wait behind another run's training.
#: Nothing is scored: thirty versions would be.
TINY = (
    "train.epochs=1", "round.cohort=1", "round.deadline_s=900", "run.preflight=off", "run.evaluate_every=0",
)  # fmt: skip
#: Of a client that never answers; held until it is released.
GHOST_S = 900.0


@pytest.fixture(scope="module")
def two(federation: Federation) -> Federation:
    """One client, two aggregator workers."""
    federation.start("aggregator-2")
    wait_for("it", lambda: len(federation.store.control.workers.living()) == CLIENTS + 3, 120)
    return federation


def trainings(federation: Federation) -> list[tuple[str, int]]:
    """(run, round) of each training of the client, in order."""
    events = federation.client_events("site-1")
    return [(event["run"], event["round"]) for event in events if event["event"] == "training"]


def waits(store: Store, queue: str, run: str) -> bool:
    return any(f"_{run}_" in job for job in dispatch.queued(store, queue))


# With real workers


@pytest.mark.timeout(300)
def test_ten_runs_at_once_all_complete_and_a_client_trains_them_in_turn(two: Federation) -> None:
    store = two.store
    first = two.begin("blocker", *TINY[1:], "train.epochs=1000000")
    wait_for("the client to be busy", lambda: two.trained(first) == 1)
    runs = [two.begin(f"run-{number}", *TINY, "run.rounds=2") for number in range(RUNS)]
    queue = keyspace.client_queue("site-1")
    wait_for("all rounds to be open", lambda: all(waits(store, queue, run) for run in runs), 120)
    controls.cancel(store, "blocker")
    states = [two.finish(run, 200) for run in runs]
    order = [run for run, _ in trainings(two) if run in runs]

    assert {(state.state, state.version) for state in states} == {("completed", 2)}
    for run in runs:
        outcomes = [record.outcome for record in store.control.history.records(run)]
        assert outcomes == ["committed"] * 2 + ["evaluated"]
        assert two.trained(run) == 2
    assert sorted(order[:RUNS]) == sorted(runs)  # No run twice before all runs once.
    for end in range(len(order)):
        counts = [order[:end].count(run) for run in runs]
        assert max(counts) - min(counts) <= 2


def _has_received(store: Store, run: str) -> bool:
    receipt = store.control.receipts.of_round(run, 1).get("site-1")
    return receipt is not None and receipt.status == "received"


@pytest.mark.timeout(300)
def test_a_busy_run_does_not_wait_for_nine_idle_rounds(two: Federation) -> None:
    store = two.store
    store.control.leases.hold(keyspace.client_holder("ghost"), "t", GHOST_S, {})
    idle = [
        two.begin(f"idle-{number}", *TINY, "round.cohort=2", "run.rounds=1")
        for number in range(RUNS - 1)
    ]

    def answered() -> bool:
        return all("site-1" in store.control.receipts.of_round(run, 1) for run in idle)

    wait_for("the living client's answers", answered, 120)
    store.control.leases.release(keyspace.client_holder("ghost"), "t", "ghost")
    busy = two.begin("busy", *TINY, "run.rounds=3")
    state = two.finish(busy, 60)

    assert (state.state, state.version) == ("completed", 3)
    assert len(two.committed(busy)) == 3
    for run in idle:
        current = store.control.rounds.get(run, 1)
        assert current is not None
        assert current.open
        # An incarnation that has just taken over writes what the last one had received once more.
        wait_for("its receipt", lambda run=run: _has_received(store, run), 30)
        assert two.trained(run) == 1
        controls.cancel(store, run.rpartition("-")[0])


# Step by step


@pytest.fixture
def hand(store: Store, tmp_path: Path) -> ManualRun:
    return ManualRun(store, tmp_path, "ab", 100)


def test_a_round_with_nothing_to_do_is_not_given_a_worker(hand: ManualRun, store: Store) -> None:
    assert waits(store, keyspace.AGGREGATE_QUEUE, hand.run)

    assert not scheduling.should_yield(store, "another")
    assert not scheduling.should_yield(store, hand.run)


def test_an_element_makes_a_round_the_next_one(hand: ManualRun, store: Store) -> None:
    store.control.redis.lpush(QUEUE, "aggregator_mine_1_aaaa")
    hand.update("a")

    assert not scheduling.should_yield(store, "another", only="a-third")
    assert not scheduling.should_yield(store, hand.run, only=hand.run)
    assert scheduling.should_yield(store, "mine", only=hand.run)
    assert dispatch.queued(store, keyspace.AGGREGATE_QUEUE)[:2] == [
        hand.job(),
        "aggregator_mine_1_aaaa",
    ]


@pytest.mark.parametrize(("field", "by_s"), [("deadline_s", 0.0), ("quorum_at_s", 100.0)])
def test_a_round_that_is_due_gets_a_worker(
    hand: ManualRun, store: Store, field: str, by_s: float
) -> None:
    key = keyspace.round_(hand.run, 1)
    store.control.redis.hset(key, mapping={"elapsed_s": 200, field: by_s, "grace_s": 100})

    assert scheduling.should_yield(store, "another")
    store.control.redis.hset(key, mapping={"elapsed_s": 199})
    assert scheduling.should_yield(store, "another") == (field == "deadline_s")


def test_a_round_that_has_ended_gets_a_worker_to_find_that_out(
    hand: ManualRun, store: Store
) -> None:
    job = hand.job()
    controls.cancel(store, hand.state.name)
    store.control.redis.delete(QUEUE)
    store.control.redis.rpush(QUEUE, job)

    assert scheduling.should_yield(store, "another")


def test_only_a_job_that_waits_is_moved_to_the_front(hand: ManualRun, store: Store) -> None:
    job = hand.job()
    store.control.redis.delete(QUEUE)
    dispatch.to_front(store, keyspace.AGGREGATE_QUEUE, job)

    assert dispatch.queued(store, keyspace.AGGREGATE_QUEUE) == []


def test_an_arriving_element_rings_for_its_run(hand: ManualRun, store: Store) -> None:
    with store.data.results.doorbell() as bell:
        assert bell.wait(0.01) is None
        hand.update("a")
        assert bell.wait(5.0) == hand.run
        assert bell.wait(0.01) is None


def test_a_round_that_makes_way_takes_its_sum_along_and_comes_back(
    hand: ManualRun, store: Store, tmp_path: Path
) -> None:
    hand.update("a")
    store.control.redis.delete(QUEUE)
    store.control.redis.rpush(
        QUEUE, "aggregator_gone-123_1_aaaa"
    )  # Its run is gone: reported in the log.

    assert hand.work() == "made way for another round"
    assert dispatch.queued(store, keyspace.AGGREGATE_QUEUE) == [
        "aggregator_gone-123_1_aaaa",
        hand.job(),
    ]
    assert store.data.partial_sum.get(hand.run)["count"] == "1"
    assert store.data.taken.count(hand.run, store.control.runs.fence(hand.run)) == 0
    healer.Healer(store, tmp_path).heal(hand.run)
    store.control.redis.lrem(QUEUE, 0, "aggregator_gone-123_1_aaaa")
    hand.update("b")
    assert hand.work() == "committed: 2 of 2 updates in"


# One worker, and rounds so short that there is always something to do


def many(store: Store, folder: Path, count: int, rounds: int = 1000) -> dict[str, ManualRun]:
    """Run id -> a run whose updates of the open round are all there."""
    runs = [ManualRun(store, folder, "ab", 100, name=f"run-{number}") for number in range(count)]
    for hand in runs:
        store.control.redis.hset(keyspace.run(hand.run), "rounds_wanted", rounds)
        answer(hand)
    store.control.redis.delete(QUEUE)  # Jobs of rounds that were worked by hand.
    store.control.redis.rpush(QUEUE, *(hand.job() for hand in runs))
    return {hand.run: hand for hand in runs}


def answer(hand: ManualRun) -> None:
    for client in hand.round.cohort:
        hand.update(client, token=f"{client}-{hand.round.number}")


def work_off(store: Store, folder: Path, runs: dict[str, ManualRun], jobs: int) -> list[str]:
    """Do so many aggregator jobs as a worker does, with clients that answer at once; the runs they were of."""
    done = []
    while len(done) < jobs:
        job = store.control.redis.lpop(QUEUE)
        assert job is not None, "every round has its job"
        _, run, number, _ = job.decode().split("_")
        version = runs[run].state.version
        RoundAggregator(store, run, int(number), job.decode(), folder).work()
        runs[run].advance()
        done.append(run)
        if runs[run].state.version != version and runs[run].state.active:
            answer(runs[run])
    return done


@pytest.mark.parametrize("count", [2, 5])
def test_runs_of_short_rounds_share_a_worker_in_turn(
    store: Store, tmp_path: Path, count: int
) -> None:
    runs = many(store, tmp_path, count)
    work_off(store, tmp_path, runs, 4 * count)
    versions = {run: hand.state.version or 0 for run, hand in runs.items()}

    assert sum(versions.values()) == 4 * count  # No job was spent on making way.
    assert max(versions.values()) - min(versions.values()) <= 1


def test_a_run_that_has_just_been_started_gets_its_turn_among_busy_ones(
    store: Store, tmp_path: Path
) -> None:
    runs = many(store, tmp_path, 2)
    new = ManualRun(store, tmp_path, "ab", 100, name="new", ready=False)
    store.control.queues.move_to_back(QUEUE, new.job())
    work_off(store, tmp_path, runs | {new.run: new}, 4)

    assert new.state.version == 0


def test_idle_rounds_are_passed_over_by_those_that_share_a_worker(
    store: Store, tmp_path: Path
) -> None:
    idle = [ManualRun(store, tmp_path, "ab", 100, name=f"idle-{number}") for number in range(3)]
    runs = many(store, tmp_path, 2)
    store.control.redis.delete(QUEUE)
    store.control.redis.rpush(QUEUE, *(hand.job() for hand in (*runs.values(), *idle)))
    done = work_off(store, tmp_path, runs, 6)

    assert sorted(done.count(run) for run in runs) == [3, 3]


def test_a_lone_runs_next_round_goes_on_where_its_worker_is(store: Store, tmp_path: Path) -> None:
    idle = ManualRun(store, tmp_path, "ab", 100, name="idle")
    (run, hand), *_ = many(store, tmp_path, 1).items()
    store.control.redis.rpush(QUEUE, idle.job())

    assert work_off(store, tmp_path, {run: hand}, 3) == [run] * 3
    assert dispatch.queued(store, keyspace.AGGREGATE_QUEUE) == [hand.job(), idle.job()]


@pytest.mark.timeout(60)
def test_what_came_before_a_round_listened_makes_it_give_way_at_once(
    hand: ManualRun, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = ManualRun(store, tmp_path, "ab", 100, name="other")
    answer(other)
    monkeypatch.setattr(collection, "WAIT_S", 600.0)  # Nothing rings for it any more.

    assert hand.work() == "made way for another round"
    assert dispatch.queued(store, keyspace.AGGREGATE_QUEUE)[0] == other.job()


def test_a_round_that_holds_a_sum_stays_for_longer_than_handing_it_over_takes(
    hand: ManualRun, store: Store, tmp_path: Path
) -> None:
    answer(hand)
    turn = scheduling.Turn(store, "mine", cost_s=600.0)

    assert not turn.is_over(holds=True)
    assert not turn.is_over(holds=True, rang=hand.run)
    assert not turn.is_up()
    assert turn.is_over(holds=False)
    assert not turn.is_over(holds=False)  # It asked just now.
    assert turn.is_over(holds=False, rang=hand.run)
