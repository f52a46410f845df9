"""Whole runs of strategies that keep something, calm and killed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fl_queue.coordinator.operations import backup, verification
from fl_queue.errors import ConfigError
from fl_queue.protocol import identifiers, tensor_layout
from fl_queue.protocol.records import RoundRecord
from fl_queue.reporting import diagnosis
from fl_queue.store import keyspace
from fl_queue.strategies.layouts import state_manifest
from tests.support.federation import Federation, wait_for

CLIENTS = 2
FORKED = True
EVALUATOR = False
COHORT = ("round.cohort=2", "run.evaluate_every=0")
ADAM = (*COHORT, "aggregation.strategy=fedadam", "strategy.server_learning_rate=0.01")
OWN = """
from fl_queue.strategies import Option, Strategy

class Half(Strategy):
    OPTIONS = {"share": Option("float", 0.5, "part of the mean that is added", above=0)}
    server_state = ("last",)

    def step(self, block):
        mean = block.mean()
        block.state["last"] = mean
        return block.x + self.number("share") * mean
"""


SCAFFOLD = (
    *COHORT,
    "aggregation.strategy=scaffold",
    "aggregation.weighting=uniform",
    "run.rounds=6",
)
#: What clients keep besides: the bias, and what top-k left out of the weights.
PERSONAL = ('model.private=["bias"]', "update.codec=topk", "update.fraction=0.1", "update.error_feedback=true")  # fmt: skip
#: Clients keep the momentum of their parameters.
MOMENTUM = ("train.momentum=0.9", "train.optimizer_state=keep")


def environment(folder: Path) -> dict[str, str]:
    (folder / "mine.py").write_text(OWN)
    return {"PYTHONPATH": str(folder)}


def what_was_made(records: list[RoundRecord]) -> list[tuple[str | None, dict[str, str]]]:
    """Digests of each round's version, and of what the strategy keeps with it."""
    return [(record.digest, record.server_state) for record in records]


def test_a_killed_aggregator_changes_no_bit_of_what_the_server_keeps(
    federation: Federation,
) -> None:
    run = federation.begin("adam", *ADAM)
    federation.finish(run)
    calm = what_was_made(federation.committed(run))
    federation.free(run)
    assert [set(state) for _, state in calm] == [{"m", "v"}] * 3

    fired = federation.arm("model.published", "kill")
    killed = federation.begin("adam", *ADAM, "model.keep_updates=true")
    federation.finish(killed)

    assert fired.exists()
    records = federation.committed(killed)
    assert what_was_made(records) == calm
    assert [r.base_server_state for r in records] == [{}, *(state for _, state in calm[:-1])]
    state_dir = federation.redis.state_dir
    state = federation.store.control.runs.get(killed)
    assert state is not None
    assert state.server_state == calm[-1][1]
    verdicts = list(verification.verify(federation.store, state, state_dir))
    assert [verdict.result for verdict in verdicts] == ["same"] * 3


def test_a_backup_has_what_the_server_keeps(federation: Federation, tmp_path: Path) -> None:
    rounds = "run.rounds=2"
    run = federation.begin("saved", *ADAM, rounds)
    federation.finish(run)
    first = what_was_made(federation.committed(run))
    backup.write(federation.store, run, tmp_path / "saved.zip", federation.redis.state_dir)
    federation.begin("saved", *ADAM, "run.rounds=1")
    federation.finish(run)
    whole = what_was_made(federation.committed(run))
    assert whole[:2] == first
    federation.free(run)

    restored = backup.restore(federation.store, tmp_path / "saved.zip", federation.redis.state_dir)
    # The data server loses it all, and this machine has the checkpoints.
    for digest in restored.server_state.values():
        federation.store.data.chunks.drop(keyspace.model_blob(restored.run_id, digest), 1)
    federation.begin("saved", *ADAM, "run.rounds=1")
    federation.finish(restored.run_id)

    assert what_was_made(federation.committed(restored.run_id)) == whole


def test_killed_clients_and_aggregators_change_no_bit_of_what_clients_keep(
    federation: Federation,
) -> None:
    calm = federation.begin("controls", *SCAFFOLD)
    federation.finish(calm)
    expected = what_was_made(federation.committed(calm))
    notes = [
        receipt.environment["client_state"]
        for receipt in federation.store.control.receipts.of_round(calm, 6).values()
    ]
    assert notes == ["of round 5"] * CLIENTS
    federation.free(calm)

    kept = ("model.keep_updates=true", "model.keep_versions=0")
    run = federation.begin("controls", *SCAFFOLD, *kept)
    federation.reach(run, 2)
    fired = [
        federation.arm("client.trained", "kill", "site-1_"),
        federation.arm("checkpoint.written", "kill"),
    ]
    federation.finish(run)

    assert [path.exists() for path in fired] == [True, True]
    assert what_was_made(federation.committed(run)) == expected
    state = federation.store.control.runs.get(run)
    assert state is not None
    verdicts = verification.verify(federation.store, state, federation.redis.state_dir)
    assert {verdict.result for verdict in verdicts} == {"same"}
    populations = [record.base_population for record in federation.committed(run)]
    assert populations == [0, *[CLIENTS] * (len(populations) - 1)]


def test_kills_in_training_and_at_acceptance_change_no_bit_of_a_kept_momentum(
    federation: Federation,
) -> None:
    """Versions 2 and 3 follow from what was kept in the rounds before them; all kills are in round 1."""
    settings = (*COHORT, *MOMENTUM, "run.rounds=3", "round.quorum=2")
    run = federation.begin("momentum", *settings)
    federation.finish(run)
    calm = what_was_made(federation.committed(run))
    notes = federation.store.control.receipts.of_round(run, 3).values()
    assert [note.environment["client_state"] for note in notes] == ["of round 2"] * CLIENTS
    federation.free(run)
    fired = [
        federation.arm("client.trained", "kill", "site-1_"),
        # Its update is in the outbox, and its state is on the disk.
        federation.arm("outbox.written", "kill", "site-2_"),
        # The updates are accepted in a round that is not committed.
        federation.arm("round.decided", "kill", "aggregator-"),
    ]

    killed = federation.begin("momentum", *settings)

    federation.finish(killed)
    assert [path.exists() for path in fired] == [True, True, True]
    assert what_was_made(federation.committed(killed)) == calm
    assert len(calm) == 3
    federation.free(killed)


@pytest.mark.parametrize(
    ("settings", "start"),
    [
        (
            (*COHORT, *PERSONAL, *MOMENTUM),
            "zero and the private tensors of version 0 and a new optimizer",
        ),
        pytest.param((*COHORT, "aggregation.strategy=ditto"), "the round's model", marks=pytest.mark.slow),  # As above.
    ],
)  # fmt: skip
def test_a_client_that_lost_its_state_starts_from_what_it_reports(
    federation: Federation, settings: tuple[str, ...], start: str
) -> None:
    run = federation.begin("lost", *settings, "run.rounds=1")
    federation.finish(run)
    shutil.rmtree(federation.redis.state_dir / "client-state" / run / "site-1")
    federation.begin("lost", *settings, "run.rounds=1")
    federation.finish(run)
    federation.free(run)

    number = federation.committed(run)[-1].round
    receipts = federation.store.control.receipts.of_round(run, number)
    states = {client: receipt.environment["client_state"] for client, receipt in receipts.items()}
    assert states["site-2"] == "of round 1"
    assert states["site-1"].startswith(f"missing, that of round 1: starts from {start} (")
    events = [
        event
        for event in federation.client_events("site-1")
        if event["event"] == "client_state_missing" and event["run"] == run
    ]
    assert [(event["run"], event["round"]) for event in events] == [(run, number)]


def test_a_lost_state_sets_all_to_zero_and_kills_change_no_bit(federation: Federation) -> None:
    settings = (*SCAFFOLD, "run.rounds=2", "model.keep_updates=true", "model.keep_versions=0")
    made = []
    for kills in (False, True):
        run = federation.begin("anew", *settings)
        federation.finish(run)
        shutil.rmtree(federation.redis.state_dir / "client-state" / run / "site-1")
        points = (("client.trained", "site-1_"), ("checkpoint.written", "")) if kills else ()
        fired = [federation.arm(point, "kill", job) for point, job in points]
        federation.begin("anew", *settings)
        state = federation.finish(run)
        assert all(path.exists() for path in fired)
        records = federation.committed(run)
        made.append(what_was_made(records))

        assert [(r.round, r.state_lost) for r in records] == [(1, []), (2, []), (4, ["site-1"]), (5, [])]  # fmt: skip
        assert state.state_since == 4
        verdicts = verification.verify(federation.store, state, federation.redis.state_dir)
        assert [verdict.result for verdict in verdicts] == ["same"] * 4
        federation.free(run)
    assert made[0] == made[1]

    manifest = federation.store.control.versions.manifest(run)
    assert manifest is not None
    zeros = tensor_layout.body_digest(bytes(state_manifest(manifest).nbytes))
    assert [server == {"c": zeros} for _, server in made[0]] == [False, False, True, False]
    receipts = federation.store.control.receipts.of_round(run, 5).values()
    states = {receipt.environment["client_state"] for receipt in receipts}
    assert states == {
        "zero again since round 4, where a client had lost its state or the run went back to an older version"
    }
    why = "site-1 had lost the client state of scaffold: the state of the strategy is zero again"
    assert diagnosis.notices(federation.store, state)[-1].startswith(f"round 4: {why}")
    found = federation.store.control.events.read({keyspace.events(run): "0-0"}, None)
    lost = [event for _, _, event in found if event["event"] == "client_state_lost"]
    assert [(e["round"], e["reason"][: len(why)]) for e in lost] == [(4, why)]


def test_a_run_keeps_what_decides_what_clients_and_server_keep(federation: Federation) -> None:
    run = federation.begin("loyal", *COHORT, "run.rounds=1")
    federation.finish(run)
    feedback = ("update.codec=topk", "update.error_feedback=true")
    for other in (ADAM, ('model.private=["bias"]',), feedback):
        with pytest.raises(ConfigError, match="keeps the value") as caught:
            federation.begin("loyal", *COHORT, *other)
        assert f"{caught.value.field}=" in " ".join(other)


def test_an_own_strategy_runs_where_it_is_allowed_and_is_refused_where_not(
    federation: Federation,
) -> None:
    own = (*COHORT, "aggregation.strategy=mine:Half", "round.max_abandoned=1", "run.rounds=1")
    refused = federation.begin("refused", *own)
    state = federation.finish(refused)
    assert (state.state, "--strategy-allow mine:Half" in state.reason) == ("failed", True)

    federation.stop("aggregator")
    federation.start("aggregator", "--strategy-allow", "mine:Half")
    role = identifiers.AGGREGATOR
    wait_for("the aggregator", lambda: federation.store.control.workers.is_role_alive(role))
    run = federation.begin("allowed", *own, "strategy.share=0.25")
    assert federation.finish(run).state == "completed"
    assert [set(record.server_state) for record in federation.committed(run)] == [{"last"}]
