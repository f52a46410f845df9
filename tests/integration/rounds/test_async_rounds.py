"""Asynchronous rounds on real servers, one step at a time, without workers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from fl_queue.aggregation.staleness import ONE
from fl_queue.common import seeding
from fl_queue.common.safe_json import dumps
from fl_queue.coordinator.operations import controls, deletion, verification
from fl_queue.coordinator.rounds import lifecycle, runs
from fl_queue.models import checkpoint
from fl_queue.protocol import job_origins, tensor_layout
from fl_queue.protocol.codecs import codec
from fl_queue.protocol.header import Header
from fl_queue.protocol.manifest import TensorSpec
from fl_queue.protocol.records import RoundRecord
from fl_queue.reporting import diagnosis
from fl_queue.store import Store, keyspace, queries
from fl_queue.store.jobs import dispatch
from tests.support.manual_run import NAME, ManualRun

pytestmark = pytest.mark.timeout(60)

SIZE = 1000
ASYNC = ("round.mode=async", "round.cohort=1.0", "model.keep_updates=true")


class AsyncHand(ManualRun):
    """Updates of whatever job a client is at."""

    def __init__(self, store: Store, folder: Path, clients: str, *overrides: str) -> None:
        super().__init__(store, folder, clients, SIZE, *ASYNC, *overrides)
        store.control.redis.hset(keyspace.run(self.run), "rounds_wanted", 99)

    def job_of(self, client: str) -> job_origins.JobOrigin:
        return job_origins.begun(self.round, client)

    def made(self, client: str, token: str = "") -> tuple[Header, bytes]:
        """A client's update of the job that it is at; the same bits whenever it is asked."""
        number, version = self.job_of(client)
        draw = np.random.default_rng([ord(client), number])
        values = draw.standard_normal(self.size, "<f4")
        body = np.array([ord(client)], "<i8").tobytes() + values.tobytes()
        base = self.store.control.versions.get(self.run, version)["digest"]
        header = self.header("update", client, body, token or f"token-{client}-{number}")
        return replace(header, round=number, base_version=version, base_digest=base), body

    def push(self, made: tuple[Header, bytes]) -> None:
        assert self.send(*made)

    def update(self, client: str, token: str = "", bound: int = 1 << 40) -> None:
        self.push(self.made(client, token))

    def commit(self, clients: str) -> RoundRecord:
        """Push these clients' updates and have a version made of them."""
        for client in clients:
            self.update(client)
        number = self.round.number
        assert self.work().startswith("committed")
        # However slow this machine is: no client was silent.
        self.store.control.redis.hset(keyspace.CLOCK, "settling_s", 0)
        lifecycle.advance(self.store, self.run)
        return self.past(number)

    def past(self, number: int) -> RoundRecord:
        """Record of a round that has ended."""
        return next(r for r in self.store.control.history.records(self.run) if r.round == number)

    def parameters(self, version: int) -> np.ndarray:
        """Of a version, from its checkpoint."""
        digest = self.store.control.versions.get(self.run, version)["digest"]
        folder = checkpoint.checkpoint_folder(self.folder, self.run)
        body = checkpoint.read(folder, digest, self.manifest)
        return np.array(tensor_layout.views(self.manifest, body)["w"], np.float64)


@pytest.fixture
def hand(store: Store, tmp_path: Path) -> AsyncHand:
    return AsyncHand(store, tmp_path, "abcd", "round.buffer=2")


def test_a_full_buffer_is_a_version_and_who_is_at_work_goes_on(hand: AsyncHand) -> None:
    before = dispatch.tickets(hand.store, hand.run, 1)
    record = hand.commit("ab")
    current, after = hand.round, dispatch.tickets(hand.store, hand.run, 2)

    assert (record.mode, record.reason) == ("async", "2 updates in, the buffer is full")
    assert sorted(record.accepted) == ["a", "b"]
    assert record.missing == []
    assert (current.number, current.base_version, current.quorum) == (2, 1, 2)
    assert current.cohort == ("a", "b", "c", "d")
    assert current.carried == {client: {"round": 1, "version": 0} for client in "cd"}
    assert [after[client] == before[client] for client in "abcd"] == [False, False, True, True]
    # Their jobs are still there, those that were answered are not.
    queued = {client: dispatch.job_state(hand.store, before[client]) for client in "abcd"}
    assert queued == {"a": "gone", "b": "gone", "c": "queued", "d": "queued"}
    assert runs.describe_state(hand.store, hand.state) == (
        "is training: round 2, 0 of 2 updates in the buffer, 4 clients at work"
    )
    assert any(
        "on its job of round 1" in line for line in diagnosis.why_open(hand.store, hand.state)
    )


def test_a_stale_update_counts_for_less_and_the_round_can_be_verified(
    hand: AsyncHand, store: Store, tmp_path: Path
) -> None:
    hand.commit("ab")
    record = hand.commit("ac")
    receipt = store.control.receipts.of_round(hand.run, 2)["c"]

    assert record.staleness == {"a": 0, "c": 1}
    factor, unit = record.discount["weights"][1] / ONE, record.discount["unit"]
    assert factor == pytest.approx(2**-0.5, abs=1e-6)
    assert record.weights == {"a": ord("a") * unit, "c": round(ord("c") * unit * factor)}
    assert (receipt.status, receipt.staleness, receipt.weight) == (
        "accepted", 1, record.weights["c"],
    )  # fmt: skip
    verdicts = list(verification.verify(store, hand.state, tmp_path))
    assert [(verdict.round, verdict.result) for verdict in verdicts] == [(1, "same"), (2, "same")]


def test_the_papers_step_against_plain_numpy(hand: AsyncHand) -> None:
    base = hand.commit("ab").version
    change = {
        client: np.frombuffer(hand.made(client)[1][8:], "<f4").astype(np.float64) for client in "ac"
    }
    record = hand.commit("ac")
    stale, unit = {"a": 0, "c": 1}, record.discount["unit"]
    examples = sum(map(ord, stale))

    def step(weigh: Callable[[str], float]) -> np.ndarray:
        """x <- x + sum_i w_i D_i / sum_i n_i"""
        mean = sum(weigh(client) * change[client] for client in stale) / examples
        return hand.parameters(base or 0) + mean

    def exact(client: str) -> float:
        return ord(client) * float((1 + stale[client]) ** -0.5)

    found = hand.parameters(2)
    # Weights are whole numbers, of which ``unit`` are one example.
    rounded = step(lambda client: round(unit * exact(client)) / unit)
    assert np.abs(found - rounded).max() < 1e-6
    # By that the step is off by at most half a unit for each stale update, and by half a part of
    # 2^20 of its weight, as the discount is a whole number of those.
    bound = sum(0.5 / unit + ord(client) / (2 * ONE) for client in "c") / examples
    off = np.abs(found - step(exact))
    assert (off <= bound * np.abs(change["c"]) + 1e-6).all()
    assert off.max() > 1e-6 or unit > 1 << 17


@pytest.mark.parametrize("staleness", ["polynomial", "constant"])
def test_with_a_buffer_of_the_cohort_it_is_fedavg_bit_for_bit(
    store: Store, tmp_path: Path, staleness: str
) -> None:
    made = []
    for mode in (("round.buffer=4", f"round.staleness={staleness}"), ()):
        folder = tmp_path / str(len(mode))
        if mode:
            hand: ManualRun = AsyncHand(store, folder, "abcd", *mode)
        else:
            hand = ManualRun(store, folder, "abcd", SIZE)
        for client in "abcd":
            hand.update(client)
        assert hand.work().startswith("committed")
        made.append(store.control.versions.get(hand.run, 1)["digest"])
        controls.cancel(store, NAME)
        deletion.delete(store, hand.state, folder)
    assert made[0] == made[1]


def test_the_order_of_arrival_and_a_checkpointed_sum_change_no_bit(
    store: Store, tmp_path: Path
) -> None:
    made = []
    for order, bound in (("ac", 1 << 40), ("ca", 1)):
        folder = tmp_path / order
        hand = AsyncHand(
            store, folder, "abcd", "round.buffer=2", "redis.inline_bytes=0",
            f"redis.unmerged_bytes={bound}",
        )  # fmt: skip
        hand.commit("ab")
        hand.update(order[0])
        intake = hand.intake()
        hand.take(intake, 1)
        if bound == 1:
            intake.checkpoint()  # Killed after it: the next one goes on from the sum.
        hand.update(order[1])
        hand.work()
        made.append((hand.past(2).digest, hand.past(2).weights))
        controls.cancel(store, NAME)
        deletion.delete(store, hand.state, folder)
    assert made[0] == made[1]


def test_a_client_that_is_too_far_behind_is_given_up_and_begins_anew(
    store: Store, tmp_path: Path
) -> None:
    hand = AsyncHand(store, tmp_path, "abcd", "round.buffer=2", "round.max_staleness=1")
    slow = hand.made("c")
    hand.commit("ab")
    assert not queries.has_ended(store.control, hand.run, 1, "c")
    record = hand.commit("ab")

    reason = "stale: at work on version 0 when version 2 was made; round.max_staleness = 1"
    assert record.rejected == {"c": reason, "d": reason}
    assert store.control.receipts.of_round(hand.run, 2)["c"].status == "stale"
    assert hand.job_of("c") == (3, 2)
    assert queries.has_ended(store.control, hand.run, 1, "c")
    # What it sends all the same is recorded, and not merged.
    hand.push(slow)
    hand.take(hand.intake(), 1)
    late = store.control.receipts.of_round(hand.run, 1)["c"]
    assert (late.status, late.token) == ("stale", "token-c-1")
    assert late.reason == "made from version 0, 2 versions ago; round.max_staleness = 1"
    assert sorted(hand.commit("ac").accepted) == ["a", "c"]


def test_an_update_that_comes_again_is_counted_once(hand: AsyncHand, store: Store) -> None:
    first = hand.made("a")
    hand.push(first)
    hand.push(first)
    hand.push((replace(first[0], token="another"), first[1]))
    hand.commit("b")
    assert store.control.receipts.of_round(hand.run, 1)["a:duplicate"].status == "duplicate"
    stale = hand.made("c")
    hand.push(stale)
    hand.commit("a")
    # Its round has ended and so has the one that merged it, as after a kill before the discard.
    hand.push(stale)
    hand.push(first)
    record = hand.commit("ab")
    assert sorted(record.accepted) == ["a", "b"]
    assert sorted(store.control.receipts.of_round(hand.run, 1)) == ["a", "a:duplicate", "b"]


def test_a_client_learns_which_job_its_accepted_update_was_of(store: Store, tmp_path: Path) -> None:
    lossy = ("update.codec=bfloat16", "update.error_feedback=true")
    hand = AsyncHand(store, tmp_path, "abcd", "round.buffer=2", *lossy)
    encode = partial(codec.encode, "bfloat16", hand.manifest, seed=0)

    def push(client: str) -> str:
        header, body = hand.made(client)
        sent = encode(body=body)
        layout = codec.entries("bfloat16", hand.manifest)
        digest = tensor_layout.body_digest(sent)
        hand.push((replace(header, codec="bfloat16", tensors=layout, body_bytes=len(sent), body_digest=digest), bytes(sent)))  # fmt: skip
        return digest

    for clients in ("ab", "ac"):
        sent = {client: push(client) for client in clients}
        hand.commit("")
    # What they keep has the number of the round in which the job began, not of that which merged it.
    assert store.control.receipts.accepted(hand.run, "c") == (1, sent["c"])
    assert store.control.receipts.accepted(hand.run, "a") == (2, sent["a"])
    assert store.control.receipts.accepted(hand.run, "d") is None


def test_another_incarnation_counts_nothing_twice_and_loses_nothing(hand: AsyncHand) -> None:
    hand.commit("ab")
    for client in "cd":
        hand.update(client)
    first = hand.intake()
    hand.take(first, 2)
    assert first.received() == 2
    assert hand.work().startswith("committed")
    assert hand.past(2).staleness == {"c": 1, "d": 1}


def test_what_jobs_still_need_stays_and_then_goes(hand: AsyncHand, store: Store) -> None:
    store.control.evaluations.set(hand.run, 0, {"state": "done", "finished": {}})
    for _ in range(4):
        hand.commit("ab")
    digest = store.control.versions.get(hand.run, 0)["digest"]
    chunk = keyspace.chunk(keyspace.model_blob(hand.run, digest), 0)

    assert hand.job_of("c") == (1, 0)
    assert store.control.rounds.get(hand.run, 1) is not None
    assert store.data.redis.exists(chunk)
    hand.commit("cd")
    assert hand.past(5).staleness == {"c": 4, "d": 4}
    hand.commit("ab")
    assert store.control.rounds.get(hand.run, 1) is None
    assert not store.data.redis.exists(chunk)


def test_an_abandoned_round_gives_no_client_up(store: Store, tmp_path: Path) -> None:
    hand = AsyncHand(store, tmp_path, "abcd", "round.buffer=2", "round.deadline_s=0.2")
    before = dispatch.tickets(store, hand.run, 1)
    hand.update("a")
    assert hand.work().startswith("abandoned")
    after = dispatch.tickets(store, hand.run, 2)

    assert [after[client] == before[client] for client in "abcd"] == [False, True, True, True]
    hand.update("b")
    hand.update("a")
    assert hand.work().startswith("committed")
    assert hand.past(2).staleness == {"a": 0, "b": 0}


def test_a_client_that_is_idle_begins_where_another_one_has_answered(
    store: Store, tmp_path: Path
) -> None:
    hand = AsyncHand(store, tmp_path, "abcde", "round.buffer=2", "round.concurrency=2")
    first = hand.round.cohort
    assert list(first) == seeding.select_cohort(hand.config.run.seed, 1, list("abcde"), 2)
    hand.update(first[0])
    intake = hand.intake()
    hand.take(intake, 1)
    lifecycle.advance(store, hand.run)
    joined = hand.round

    (new,) = set(joined.cohort) - set(first)
    assert dispatch.tickets(store, hand.run, 1)[new].number == 1
    lifecycle.advance(store, hand.run)  # Two are at work: there is no room for more.
    assert hand.round.cohort == joined.cohort
    hand.update(new)
    assert hand.work().startswith("committed")
    assert sorted(hand.past(1).accepted) == sorted((first[0], new))
    assert hand.past(1).cohort == sorted(joined.cohort)
    assert sorted(hand.round.carried) == [first[1]]
    assert len(hand.round.cohort) == 2


def test_the_first_round_waits_for_all_that_are_to_train(store: Store, tmp_path: Path) -> None:
    hand = AsyncHand(store, tmp_path, "ab", "round.buffer=2", "round.concurrency=3")
    assert hand.state.round == 0
    assert "round.concurrency = 3, but 2 clients are alive" in hand.state.reason


def test_cancelling_ends_the_jobs_of_all_rounds(hand: AsyncHand, store: Store) -> None:
    old = dispatch.tickets(store, hand.run, 1)["c"]
    hand.commit("ab")
    assert dispatch.job_state(store, old) == "queued"
    controls.cancel(store, NAME)
    assert dispatch.job_state(store, old) == "gone"
    assert queries.has_ended(store.control, hand.run, 1, "c")


class BufferHand(AsyncHand):
    """A model with a running statistic, which each client's training makes its own value of."""

    buffers = (TensorSpec("a_mean", (2,), "float_buffer"),)

    def value_of(self, client: str, number: int) -> np.ndarray:
        """What a client's training comes to, whatever it began with."""
        draw = np.random.default_rng([ord(client), number])
        return draw.normal(2.0, 0.1, 2).astype("<f4")

    def statistic(self, version: int) -> np.ndarray:
        digest = self.store.control.versions.get(self.run, version)["digest"]
        body = checkpoint.read(
            checkpoint.checkpoint_folder(self.folder, self.run), digest, self.manifest
        )
        return np.array(tensor_layout.views(self.manifest, body)["a_mean"], np.float64)

    def made(self, client: str, token: str = "") -> tuple[Header, bytes]:
        header, body = super().made(client, token)
        begun = self.job_of(client)
        base = self.statistic(begun.version).astype("<f4")
        body = (self.value_of(client, begun.round) - base).tobytes() + body
        changed = replace(header, body_bytes=len(body), body_digest=tensor_layout.body_digest(body))
        return changed, body


def test_running_statistics_of_stale_updates_are_merged_as_values(
    store: Store, tmp_path: Path
) -> None:
    hand = BufferHand(store, tmp_path, "abcdefgh", "round.buffer=2", "model.keep_versions=0")
    for turn in range(12):
        pair = "abcdefgh"[2 * turn % 8 :][:2]
        began = {client: hand.job_of(client) for client in pair}
        record = hand.commit(pair)
        before = hand.statistic(record.base_version)
        wanted = before + sum(
            record.weights[client] * (hand.value_of(client, began[client].round) - before)
            for client in pair
        ) / sum(record.counted.values())
        found = hand.statistic(record.base_version + 1)
        np.testing.assert_allclose(found, wanted, atol=1e-5)
        assert np.all(found < 2.5)
    assert max(record.staleness.values()) == 3
    np.testing.assert_allclose(found, 2.0, atol=0.25)
    verdicts = list(verification.verify(store, hand.state, tmp_path))
    assert [verdict.result for verdict in verdicts] == ["same"] * 12


def test_statistics_have_the_same_bits_after_a_kill_and_in_any_order(
    store: Store, tmp_path: Path
) -> None:
    made = []
    for order, killed in (("ac", False), ("ca", True)):
        folder = tmp_path / order
        overrides = ("round.buffer=2", "redis.inline_bytes=0")
        hand = BufferHand(
            store, folder, "abcd", *overrides, f"redis.unmerged_bytes={1 if killed else 1 << 40}"
        )
        hand.commit("ab")
        hand.update(order[0])
        intake = hand.intake()
        hand.take(intake, 1)
        if killed:
            intake.checkpoint()  # The next one goes on from the sum.
        hand.update(order[1])
        hand.work()
        assert hand.past(2).staleness == {"a": 0, "c": 1}
        made.append(hand.past(2).digest)
        controls.cancel(store, NAME)
        deletion.delete(store, hand.state, folder)
    assert made[0] == made[1]


def test_a_round_that_an_earlier_version_has_opened_is_verified_as_it_was_made(
    store: Store, tmp_path: Path
) -> None:
    hand = BufferHand(store, tmp_path, "abcd", "round.buffer=2")
    hand.commit("ab")
    key = keyspace.round_(hand.run, hand.round.number)
    old = {k: v for k, v in hand.round.discount.items() if k != "buffers"}
    store.control.redis.hset(key, "discount", dumps(old))
    before = hand.statistic(1)
    record = hand.commit("ac")
    added = hand.value_of("c", 1) - hand.statistic(0)
    ours = hand.value_of("a", 2) - before
    mean = (record.weights["a"] * ours + record.weights["c"] * added) / sum(record.counted.values())
    np.testing.assert_allclose(hand.statistic(2), before + mean, atol=1e-5)
    assert [one.result for one in verification.verify(store, hand.state, tmp_path)] == [
        "same",
        "same",
    ]
