"""Asynchronous rounds with real workers, one of them slow, and processes killed: nothing twice, nothing lost."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from fl_queue.client import local_update
from fl_queue.common.seeding import seed_for
from fl_queue.coordinator.operations import verification
from fl_queue.coordinator.rounds.runs import current_config
from fl_queue.models import checkpoint, update_archive
from fl_queue.protocol import tensor_layout, virtual_clients
from fl_queue.protocol.codecs import codec, error_feedback
from fl_queue.protocol.records import RoundRecord
from fl_queue.store import RunState
from fl_queue.strategies.layouts import PRIVATE
from fl_queue.tasks.context import ClientContext
from fl_queue.tasks.mnist import ThreesAndSevens
from tests.support.federation import Federation, wait_for

#: One client takes its time; real training is some milliseconds.
TASK = """
import time
from fl_queue.tasks.mnist import ThreesAndSevens

class Paced(ThreesAndSevens):
    def train(self, model, data, context, on_epoch):
        pace_s = self.options.get("pace_s", 0.05)
        time.sleep(self.options["slow_s"] if context.client == "site-3" else pace_s)
        return super().train(model, data, context, on_epoch)
"""
ASYNC = (
    "run.task=paced:Paced", "round.mode=async", "round.cohort=1.0", "round.buffer=2", "task.slow_s=1.0",
    "train.epochs=1", "model.keep_updates=true", "model.keep_versions=0", "run.evaluate_every=0",
    "round.max_staleness=50",
)  # fmt: skip
#: Where an aggregator is killed; what the suite leaves to `make test-slow` is marked.
QUICK = ("update.received", "round.committed")
AGGREGATOR = [
    *QUICK,
    *(
        pytest.param(point, marks=pytest.mark.slow)  # Like those above, between other steps.
        for point in (
            "aggregator.claimed",
            "update.taken",
            "round.decided",
            "model.published",
            "checkpoint.written",
            "round.opened",
            "round.advanced",
            "round.discarded",
        )
    ),
]
CLIENT = [
    ("update.pushed", "site-3_"),
    *(
        pytest.param(*case, marks=pytest.mark.slow)  # Before the outbox has it, and other clients.
        for case in (("client.started", "site-1_"), ("client.trained", "site-3_"), ("outbox.written", "site-3_"), ("update.pushed", "site-1_"))
    ),
]  # fmt: skip
#: What clients keep: the bias, and what top-k left out of the weights.
KEEPING = ('model.private=["bias"]', "update.codec=topk", "update.fraction=0.05", "update.error_feedback=true")  # fmt: skip


CLIENTS = 3
EVALUATOR = False
ALLOW = "paced:Paced"


def environment(folder: Path) -> dict[str, str]:
    (folder / "paced.py").write_text(TASK)
    return {"PYTHONPATH": f"{folder}:{Path.cwd()}"}


def end(federation: Federation, run: str) -> tuple[RunState, list[RoundRecord]]:
    """Wait until a run has ended by itself, and see that it is in order."""
    state = federation.finish(run, 90)
    committed = federation.committed(run)
    assert state.state == "completed"
    assert [record.version for record in committed] == list(range(1, len(committed) + 1))
    assert all(len(record.accepted) == 2 for record in committed)
    # An update is named by its bits and its token; no two jobs make the same bits.
    merged = Counter(item for record in committed for item in record.accepted.items())
    tokens = Counter(
        update_archive.read(federation.redis.state_dir, run, record.round, *item)[0].token
        for record in committed
        for item in record.accepted.items()
    )
    assert set(merged.values()) == set(tokens.values()) == {1}
    verdicts = verification.verify(federation.store, state, federation.redis.state_dir)
    assert {verdict.result for verdict in verdicts} == {"same"}
    federation.free(run)
    return state, committed


def trained(federation: Federation, run: str) -> Counter[tuple[str, int]]:
    """(client, round of its job) -> how often it began to train."""
    return Counter(
        (client, event["round"])
        for client in federation.clients
        for event in federation.client_events(client)
        if event["event"] == "training" and event["run"] == run
    )


def test_versions_are_made_without_the_slow_client_and_it_still_counts(
    federation: Federation,
) -> None:
    run = federation.begin("slow", *ASYNC, "run.rounds=8")
    _, committed = end(federation, run)

    first = next(record for record in committed if "site-3" in record.accepted)
    assert first.round > 1
    assert first.staleness["site-3"] == first.base_version - first.carried["site-3"]["version"] > 0
    fast = [record for record in committed if record.round < first.round]
    assert all(record.staleness == {"site-1": 0, "site-2": 0} for record in fast)
    assert set(trained(federation, run).values()) == {1}


@pytest.mark.slow  # A worker notices every two seconds that its job is given up.
def test_a_client_that_is_always_too_slow_is_given_up_again_and_again(
    federation: Federation,
) -> None:
    run = federation.begin(
        "never", *ASYNC, "run.rounds=6", "round.max_staleness=1", "task.slow_s=600"
    )
    _, committed = end(federation, run)
    given_up = [record.round for record in committed if "site-3" in record.rejected]

    assert given_up == [2, 4, 6]
    assert "round.max_staleness = 1" in committed[1].rejected["site-3"]
    assert committed[2].carried == {}


@pytest.mark.parametrize("point", AGGREGATOR)
def test_an_aggregator_killed_at(federation: Federation, point: str) -> None:
    fired = federation.arm(point, "kill", "aggregator-")
    run = federation.begin("killed", *ASYNC, "run.rounds=4")
    wait_for(point, fired.exists)
    end(federation, run)

    assert set(trained(federation, run).values()) == {1}


@pytest.mark.parametrize(("point", "whose"), CLIENT)
def test_a_client_killed_at(federation: Federation, point: str, whose: str) -> None:
    fired = federation.arm(point, "kill", whose)
    run = federation.begin("killed", *ASYNC, "run.rounds=6")
    wait_for(point, fired.exists)
    end(federation, run)

    if point not in ("client.started", "client.trained"):
        assert set(trained(federation, run).values()) == {1}


def made_again(federation: Federation, run: str, client: str) -> list[tuple[int, str]]:
    """
    A client's accepted updates from the history alone: each trained from the version its job began
    with, and what the one before it left; round of the job and digest of the update.
    """
    state = federation.store.control.runs.get(run)
    manifest = federation.store.control.versions.manifest(run)
    assert state is not None
    assert manifest is not None
    loaded = current_config(federation.store, run)
    encoding, task = codec.encoding(loaded.update), ThreesAndSevens(loaded)
    folder = checkpoint.checkpoint_folder(federation.redis.state_dir, run)
    private: dict[str, np.ndarray] = {}
    owed: dict[str, np.ndarray] = {}
    found = []
    for record in federation.committed(run):
        if client not in record.accepted:
            continue
        began = record.carried.get(client, {"round": record.round, "version": record.base_version})
        version = federation.store.control.versions.get(run, began["version"])["digest"]
        base = tensor_layout.views(manifest, checkpoint.read(folder, version, manifest))
        context = ClientContext.of(
            loaded, client=client, run=state.name, round_number=began["round"],
            share=virtual_clients.share_of(client, state.population), shares=state.shares or 1,
        )  # fmt: skip
        plan = local_update.ClientStrategy(kept={PRIVATE: private} if private else {})
        made = local_update.train_update(task, manifest, base, context, plan=plan)
        seed = seed_for(context.seed, context.run, context.round, client, "codec")
        whole = list(error_feedback.corrected(made.pieces(), owed))
        pieces = [codec.encode_piece(encoding, *piece, seed) for piece in whole]
        found.append((began["round"], tensor_layout.pieces_digest(pieces)))
        private = {"bias": made.kept(PRIVATE, "bias").copy()}
        left = error_feedback.next_residual(encoding, whole, seed)
        owed = {spec.name: values.reshape(spec.shape) for (spec, _, _), values in zip(whole, left, strict=True)}  # fmt: skip
    return found


@pytest.mark.parametrize(
    ("point", "whose", "most"),
    [
        ("client.trained", "site-3_", 50),
        # As above between other steps, the aggregator, and a client that is given up.
        pytest.param("outbox.written", "site-3_", 50, marks=pytest.mark.slow),
        pytest.param("update.pushed", "site-1_", 50, marks=pytest.mark.slow),
        pytest.param("round.decided", "aggregator-", 50, marks=pytest.mark.slow),
        pytest.param("round.committed", "aggregator-", 50, marks=pytest.mark.slow),
        pytest.param("client.trained", "site-3_", 2, marks=pytest.mark.slow),
    ],
)
def test_what_clients_keep_advances_with_their_accepted_updates_alone(
    federation: Federation, point: str, whose: str, most: int
) -> None:
    is_slow = whose == "site-3_"
    fired = federation.arm(point, "stop" if is_slow else "kill", whose)
    # Rounds of a moment would be over before the killed client has trained again.
    pace = ("run.rounds=12", "task.slow_s=0.7", "task.pace_s=0.4")
    wanted = (f"round.max_staleness={most}", *pace)
    run = federation.begin("keeping", *ASYNC, *KEEPING, *wanted)
    wait_for(point, fired.exists)
    if (
        is_slow
    ):  # Killed once the others have gone on without it: on a loaded machine they are no quicker.
        federation.reach(run, federation.round_of(run) + 2)
        os.kill(int(wait_for("its pid", fired.read_text)), signal.SIGKILL)
    _, committed = end(federation, run)

    accepted: dict[str, list[tuple[int, str]]] = {client: [] for client in federation.clients}
    for record in committed:
        for client, digest in record.accepted.items():
            began = record.carried.get(client, {"round": record.round})
            accepted[client].append((began["round"], digest))
    assert any(record.staleness.get("site-3") for record in committed) or most == 2
    for client, updates in accepted.items():
        assert made_again(federation, run, client) == updates
        assert not updates or federation.store.control.receipts.accepted(run, client) == updates[-1]
        events = {
            event["event"] for event in federation.client_events(client) if event["run"] == run
        }
        assert "client_state_missing" not in events
