"""Virtual clients in a pool (``client.pool_job``, ``client.interruption``): the bits of site workers, and what a killed process costs."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

import pytest

from fl_queue.coordinator.operations import verification
from fl_queue.protocol import virtual_clients
from fl_queue.protocol.records import RoundRecord
from fl_queue.store import Store, keyspace
from fl_queue.store.embedded.server_pair import start
from fl_queue.store.jobs import dispatch, rq_types
from tests.support.documented_task import beans_tables, documented
from tests.support.federation import Federation, children_of, kill, wait_for
from tests.support.server_binaries import chosen_server

COUNT = 4
#: A task that leaves a line for each training.
TASK = """
import os
from pathlib import Path
from fl_queue.tasks.mnist import ThreesAndSevens

LEFT = []

class Counted(ThreesAndSevens):
    def train(self, model, data, context, on_epoch):
        if context.run == "leaky":
            LEFT.append(context.round)
        with Path(os.environ["TRAININGS"]).open("a") as file:
            file.write(f"{context.run} {context.round} {context.client} {os.getpid()}\\n")
        if context.client in os.environ["BROKEN"].split():
            raise ValueError("broken on purpose")
        return super().train(model, data, context, on_epoch)
"""
SITES = ("run.task=counted:Counted", "round.cohort=3", "round.quorum=2", "run.rounds=2")
VIRTUAL = (*SITES, "clients.kind=simulation", f"clients.count={COUNT}", "clients.processes=2")


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory, no_process_left: None) -> Iterator[Federation]:
    """An aggregator, an evaluator, two pool processes, and a site worker for each virtual client."""
    folder = tmp_path_factory.mktemp("pool")
    (folder / "counted.py").write_text(TASK)
    (folder / "beans.py").write_text(documented("# beans.py"))
    beans_tables(folder)
    environment = {
        "PYTHONPATH": str(folder),
        "TRAININGS": str(folder / "trainings"),
        "BROKEN": "sim-3",
    }
    with start(folder / "state", server=chosen_server()) as redis:
        made = Federation(redis, folder, 0, environment, "counted:Counted,beans:*", folder)
        try:
            made.start("pool", "--processes", "2")
            for client in virtual_clients.clients(COUNT):
                made.start(client)
            ready = 2 + 2 + COUNT
            wait_for("workers", lambda: len(made.store.control.workers.living()) == ready, 120)
            yield made
        finally:
            made.close()


@pytest.fixture(scope="module")
def calm(pool: Federation) -> tuple[list[str], list[RoundRecord]]:
    """Digests and records of a run with one site worker for each client."""
    run = pool.begin("same", *SITES)
    assert pool.finish(run).state == "completed"
    return pool.free(run), pool.committed(run)


def trainings(pool: Federation, name: str) -> Counter[str]:
    """``<round> <client>`` -> how often it was trained in a run, since the last question."""
    file = pool.folder / "trainings"
    lines = [line.split() for line in file.read_text().splitlines()]
    file.write_text("")
    return Counter(f"{number} {client}" for run, number, client, _ in lines if run == name)


def what_counts(records: list[RoundRecord]) -> list[object]:
    return [
        (r.cohort, r.accepted, r.weights, r.rejected, r.client_validation, r.validation, r.train)
        for r in records
    ]


def test_a_simulation_has_the_bits_and_records_of_one_site_worker_per_client(
    pool: Federation, calm: tuple[list[str], list[RoundRecord]]
) -> None:
    digests, records = calm
    trainings(pool, "same")
    run = pool.begin("same", *VIRTUAL)
    state = pool.finish(run)
    found = pool.committed(run)
    last = pool.store.control.receipts.of_round(run, 2)
    trained = trainings(pool, "same")

    assert (state.state, pool.free(run)) == ("completed", digests)
    assert what_counts(found) == what_counts(records)
    assert any("ValueError (line" in reason for r in found for reason in r.rejected.values())
    assert set(trained.values()) == {1}
    assert sorted(last) == found[-1].cohort
    assert {r.eligible[0] for r in found} == {"sim-1..sim-4"}
    events = pool.store.control.events.read({keyspace.events(run): "0-0"}, None)
    came = [event["client"] for _, _, event in events if event["event"] == "update_received"]
    assert "group-1" in came


def test_updates_that_are_kept_come_one_by_one_and_verify(
    pool: Federation, calm: tuple[list[str], list[RoundRecord]]
) -> None:
    run = pool.begin("same", *VIRTUAL, "model.keep_updates=true")
    state = pool.finish(run)
    verdicts = list(verification.verify(pool.store, state, pool.redis.state_dir))

    assert pool.free(run) == calm[0]
    assert [verdict.result for verdict in verdicts] == ["same", "same"]


@pytest.mark.parametrize(
    ("point", "again"), [("outbox.written", 0), ("update.pushed", 0), ("client.trained", 1)]
)
def test_a_killed_pool_process_costs_its_unfinished_client_and_no_bit(
    pool: Federation,
    calm: tuple[list[str], list[RoundRecord]],
    point: str,
    again: int,
) -> None:
    trainings(pool, "same")
    fired = pool.arm(point, "kill", "pool-")
    run = pool.begin("same", *VIRTUAL, "clients.processes=1")
    wait_for("the kill", fired.exists)
    state = pool.finish(run)

    assert (state.state, pool.free(run)) == ("completed", calm[0])
    trained = trainings(pool, "same")
    assert sum(trained.values()) - len(trained) == again


#: Rules that need all updates of a round: three of four, as one client is broken.
ROBUST = (*VIRTUAL, "round.cohort=4", "round.quorum=3", "aggregation.weighting=uniform", "redis.inline_bytes=0")  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "point"),
    [
        (("median",), "update.received"),
        (("krum", "strategy.f=0"), "model.published"),
        # As above: other rules, between other steps.
        pytest.param(("median",), "model.published", marks=pytest.mark.slow),
        pytest.param(("krum", "strategy.f=0"), "update.received", marks=pytest.mark.slow),
        pytest.param(("bulyan", "strategy.f=0"), "round.decided", marks=pytest.mark.slow),
        pytest.param(("geometric_median",), "checkpoint.written", marks=pytest.mark.slow),
    ],
)
def test_a_robust_rule_over_virtual_clients_has_the_same_bits_after_a_kill(
    pool: Federation, rule: tuple[str, ...], point: str
) -> None:
    settings = (*ROBUST, f"aggregation.strategy={rule[0]}", *rule[1:])
    calm = pool.begin("robust", *settings)
    assert pool.finish(calm).state == "completed"
    expected, records = pool.free(calm), pool.committed(calm)
    assert [sorted(record.accepted) for record in records] == [["sim-1", "sim-2", "sim-4"]] * 2

    fired = pool.arm(point, "kill", "aggregator-")
    run = pool.begin("robust", *settings)
    state = pool.finish(run)
    assert fired.exists()
    assert (state.state, pool.free(run)) == ("completed", expected)
    found = pool.committed(run)
    assert what_counts(found) == what_counts(records)
    assert [record.left_out for record in found] == [record.left_out for record in records]
    assert any(record.left_out for record in found) == (rule[0] == "krum")


def test_the_next_job_finds_a_process_in_place_of_a_killed_one(
    pool: Federation, calm: tuple[list[str], list[RoundRecord]]
) -> None:
    supervisor = pool.processes["pool"].pid
    before = children_of(supervisor)
    kill(before[0])
    wait_for("two processes", lambda: len(set(children_of(supervisor)) - {before[0]}) == 2)

    assert pool.finish(pool.begin("after", *VIRTUAL)).state == "completed"


def test_a_process_that_a_job_has_changed_is_followed_by_another_one(
    pool: Federation, calm: tuple[list[str], list[RoundRecord]]
) -> None:
    supervisor = pool.processes["pool"].pid
    wait_for("two processes", lambda: len(children_of(supervisor)) == 2)
    before = set(children_of(supervisor))
    run = pool.begin("leaky", *VIRTUAL, "clients.processes=1")

    assert pool.finish(run).state == "completed"
    wait_for("another process", lambda: len(set(children_of(supervisor)) - before) > 0)


def test_a_job_whose_round_has_ended_is_given_up(
    pool: Federation, calm: tuple[list[str], list[RoundRecord]]
) -> None:
    run = pool.begin("long", *VIRTUAL, "train.epochs=1000000", "run.task=mnist-3v7")
    wait_for("its round", lambda: pool.round_of(run) == 1)
    job = dispatch.tickets(pool.store, run, 1)["group-0"]
    wait_for("training", lambda: dispatch.job_state(pool.store, job).startswith("started"))
    subprocess.run(
        [
            sys.executable,
            "-m",
            "fl_queue",
            "cancel",
            "long",
            "--state-dir",
            str(pool.redis.state_dir),
        ],
        check=True,
    )

    assert pool.finish(pool.begin("next", *VIRTUAL), 60).state == "completed"


def test_a_site_worker_trains_no_virtual_clients(
    pool: Federation, calm: tuple[list[str], list[RoundRecord]]
) -> None:
    run = pool.begin("misled", *VIRTUAL, "run.rounds=1")
    pool.finish(run)
    store: Store = pool.store
    ticket = dispatch.JobTicket(
        "group-0", rq_types.POOL_TRAIN, keyspace.client_queue("sim-1"), run, 1, 60
    )
    with store.control.redis.pipeline() as pipe:
        pipe.multi()
        dispatch.publish(ticket, pipe, store.control.redis)
        pipe.execute()

    def refusals() -> list[str]:
        stream = {keyspace.client_events("sim-1"): "0-0"}
        events = [event for _, _, event in store.control.events.read(stream, None)]
        return [event["reason"] for event in events if event["event"] == "job_refused"]

    (why,) = wait_for("a refusal", refusals)
    assert "is no function of queue flq-client-sim-1" in why


@pytest.mark.parametrize("strategy", ["scaffold", "fednova", "feddyn"])
def test_what_a_strategy_wants_besides_has_the_bits_of_site_workers_in_a_pool(
    pool: Federation, strategy: str
) -> None:
    wanted = (f"aggregation.strategy={strategy}", "aggregation.weighting=uniform")
    found = []
    for kind in (SITES, VIRTUAL):
        run = pool.begin(strategy, *kind, *wanted, "run.evaluate_every=0", "run.rounds=3")
        assert pool.finish(run).state == "completed"
        records = pool.committed(run)
        found.append([(record.digest, record.server_state) for record in records])
        pool.free(run)
    assert found[0] == found[1]
    assert len(found[0]) == 3


def test_the_documented_function_is_trained(pool: Federation) -> None:
    where = ("run.rounds=2", "round.cohort=4", "train.learning_rate=0.3")
    run = pool.begin("beans", "run.task=beans:beans", "task.hidden=16", *where)
    state = pool.finish(run)
    tested = wait_for(
        "the test", lambda: pool.store.control.evaluations.all(run)[2].get("finished")
    )
    first = pool.store.control.evaluations.all(run)[0]

    assert (state.state, [len(r.accepted) for r in pool.committed(run)]) == ("completed", [4, 4])
    assert first["metrics"]["num_examples"] == 60
    assert tested["accuracy"] > first["finished"]["accuracy"]
