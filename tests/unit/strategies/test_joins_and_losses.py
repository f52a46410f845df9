"""SCAFFOLD and FedDyn while clients join, are away and lose their state: the server keeps the mean of what all keep."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from fl_queue.aggregation.merge import UpdateMerger
from fl_queue.aggregation.scales import choose_scales
from fl_queue.client.client_state import AcceptedUpdate, StoredClientState, still_counts
from fl_queue.config.schema import AggregationSection
from fl_queue.errors import MessageError
from fl_queue.protocol.manifest import Manifest, TensorSpec
from fl_queue.protocol.records import LOST
from fl_queue.strategies import base, get_strategy, layouts
from tests.support import exact_sums

#: A client's loss: ``curvature (w - optimum)^2 / 2``.
OPTIMA = np.array([8, 9, 10, 11, 0, 1, 2, 3.0])
CURVATURES = np.array([1, 0.3, 2, 0.5, 1.5, 0.4, 1, 0.2])
BEST = float((CURVATURES * OPTIMA).sum() / CURVATURES.sum())
RATE, STEPS = 0.1, 5
MANIFEST = Manifest((TensorSpec("w", (1,), "parameter"),))
STRATEGIES: list[tuple[str, dict[str, float]]] = [("scaffold", {}), ("feddyn", {"alpha": 0.5})]


class Federation:
    """Rounds of one number, by what clients and aggregators run, without anything around it."""

    def __init__(self, name: str, options: dict[str, float]) -> None:
        self.strategy = get_strategy(name, options)
        self.x = np.zeros(1, np.float32)
        self.server: dict[str, dict[str, np.ndarray]] = {}
        self.kept: dict[int, dict[str, dict[str, np.ndarray]]] = {}
        self.seen: set[int] = set()
        self.version = self.base_population = self.since = 0
        #: Client -> round of its newest accepted update.
        self.accepted: dict[int, int] = {}

    def state_of(self, client: int) -> StoredClientState:
        """What a client finds on its disk, as far as it counts."""
        if client not in self.accepted:
            return StoredClientState()
        found = StoredClientState(self.kept.get(client, {}), is_missing=client not in self.kept)
        own = self.strategy.client_state
        return still_counts(found, AcceptedUpdate(self.accepted[client], ""), self.since, own, own)

    def train(self, client: int, merge: UpdateMerger) -> None:
        found = self.state_of(client)
        have: dict[str, Any] = {"server": self.server, "kept": found.state}
        have |= {"learning_rate": RATE, "parameters": ["w"]}
        correction = self.strategy.correction(base.ClientTrainingState(**have))
        offset = np.asarray(correction.offset("w") if correction.offset else 0.0)
        y = self.x.astype(np.float64)
        for _ in range(STEPS):
            gradient = CURVATURES[client] * (y - OPTIMA[client])
            y = y - RATE * (gradient + correction.proximal * (y - self.x) + offset)
        change = (y - self.x).astype(np.float32)
        answer = self.strategy.answer(
            base.ClientTrainingState(**have, steps=STEPS, change=lambda name: change)
        )
        sent = {"w": change}
        for extra in self.strategy.extras:
            assert answer.extra is not None
            sent[base.extra_name(extra, "w")] = answer.extra(extra, "w").astype(np.float32)
        exact_sums.add(merge.total, sent, 1)
        if found.is_lost:
            merge.total.add_scalars({LOST: Fraction(1)})
        assert answer.keep is not None
        self.kept[client] = {
            state: {"w": np.asarray(answer.keep(state, "w"), np.float32)}
            for state in self.strategy.client_state
        }

    def round(self, alive: Sequence[int], cohort: Sequence[int]) -> None:
        """One round; clients that were not seen before are new in the population."""
        self.seen |= set(alive)
        ranges = self.strategy.ranges(AggregationSection())
        scales = choose_scales(len(cohort), 1, {key: span.limit for key, span in ranges.items()})
        fixed = {key: (scale.s, scale.limit) for key, scale in scales.items()}
        merge = UpdateMerger(MANIFEST, AggregationSection(), fixed, 1, strategy=self.strategy)
        for client in cohort:
            self.train(client, merge)
        self.version += 1
        self.accepted |= dict.fromkeys(cohort, self.version)
        facts = base.RoundInfo(self.version, len(cohort), len(self.seen), self.base_population)
        out: dict[str, list[np.ndarray]] = {state: [] for state in self.strategy.server_state}
        sinks = {state: blocks.append for state, blocks in out.items()}
        made = merge.next_model(self.x.tobytes(), self.server, sinks, facts)
        self.x = np.concatenate(list(made))
        if merge.begins_anew:
            self.since = self.version
        self.server = {state: {"w": np.concatenate(blocks)} for state, blocks in out.items()}
        self.base_population = len(self.seen)

    def means(self) -> tuple[float, float]:
        """What the server keeps, and the mean of what the clients seen keep."""
        (ours,), (theirs,) = self.strategy.server_state, self.strategy.client_state
        states = (self.state_of(who).state for who in self.seen)
        clients = [float(state[theirs]["w"][0]) for state in states if theirs in state]
        return float(self.server[ours]["w"][0]), sum(clients) / len(self.seen)


@pytest.mark.parametrize(("name", "options"), STRATEGIES)
@pytest.mark.parametrize("seed", range(8))
def test_a_client_that_joins_when_the_server_keeps_the_mean_of_all(
    name: str, options: dict[str, float], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    joins = rng.integers(0, 12, len(OPTIMA))
    joins[rng.integers(len(OPTIMA))] = 0
    federation = Federation(name, options)
    for number in range(15):
        alive = np.flatnonzero(joins <= number)
        size = int(rng.integers(1, len(alive) + 1))
        federation.round(alive.tolist(), rng.choice(alive, size, replace=False).tolist())
        ours, theirs = federation.means()
        assert ours == pytest.approx(theirs, abs=1e-4)
    assert federation.seen == set(range(len(OPTIMA)))


@pytest.mark.parametrize(("name", "options"), STRATEGIES)
@pytest.mark.parametrize("joins", [2, 9])
def test_who_joins_late_does_not_move_the_point_of_convergence(
    name: str, options: dict[str, float], joins: int
) -> None:
    federation = Federation(name, options)
    for number in range(150):
        alive = range(4 if number < joins else 8)
        federation.round(alive, alive)
    assert float(federation.x[0]) == pytest.approx(BEST, abs=0.01)


def test_without_new_clients_and_where_it_is_not_recorded_no_bit_changes() -> None:
    values = np.random.default_rng(1).normal(0, 1e-3, 1000)
    for facts in (base.RoundInfo(3, 2, 7, 7), base.RoundInfo(3, 2, 7)):
        assert facts.over_population(values).tobytes() == values.tobytes()
    assert (base.RoundInfo(3, 2, 8, 4).over_population(values) == values / 2).all()


@pytest.mark.parametrize(("name", "options"), STRATEGIES)
@pytest.mark.parametrize("lost", [2, 40])
def test_a_lost_state_does_not_move_the_point_of_convergence(
    name: str, options: dict[str, float], lost: int
) -> None:
    federation = Federation(name, options)
    for number in range(lost + 100):
        if number == lost:
            del federation.kept[0]
        federation.round(range(8), range(8))
    assert federation.since == lost + 1
    assert float(federation.x[0]) == pytest.approx(BEST, abs=0.01)


@pytest.mark.parametrize(("name", "options"), STRATEGIES)
@pytest.mark.parametrize("seed", range(4))
def test_whatever_the_order_in_which_clients_join_are_away_and_lose_their_state(
    name: str, options: dict[str, float], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    joins = rng.integers(0, 10, len(OPTIMA))
    joins[rng.integers(len(OPTIMA))] = 0
    federation, losses = Federation(name, options), 0
    for number in range(20):
        alive = np.flatnonzero((joins <= number) & (rng.random(len(OPTIMA)) < 0.8)).tolist()
        for client in sorted(federation.kept):
            if rng.random() < 0.05:
                del federation.kept[client]
        if not alive:
            continue
        cohort = rng.choice(alive, int(rng.integers(1, len(alive) + 1)), replace=False).tolist()
        losses += any(federation.state_of(client).is_lost for client in cohort)
        federation.round(alive, cohort)
        if all(not federation.state_of(client).is_lost for client in federation.seen):
            ours, theirs = federation.means()
            assert ours == pytest.approx(theirs, abs=1e-4)
    assert losses
    for _ in range(100):
        federation.round(range(8), range(8))
    assert float(federation.x[0]) == pytest.approx(BEST, abs=0.01)


def test_only_a_client_with_state_may_report_it_lost() -> None:
    scaffold, fedavg = get_strategy("scaffold", {}), get_strategy("fedavg", {})
    layouts.check_scalars(scaffold, {LOST: 1.0})
    layouts.check_scalars(scaffold, {})
    for strategy, value in ((fedavg, 1.0), (scaffold, -1.0), (scaffold, 0.0)):
        with pytest.raises(MessageError, match=LOST):
            layouts.check_scalars(strategy, {LOST: value})


def test_of_a_state_from_before_only_what_is_not_the_strategys_counts() -> None:
    both = StoredClientState({"c": {}, "private": {}}, "of round 3")
    found = still_counts(both, AcceptedUpdate(3, ""), 3, ("c", "private"), ("c",))
    assert (set(found.state), found.is_missing, found.is_lost) == ({"private"}, False, False)
    assert still_counts(both, AcceptedUpdate(4, ""), 3, ("c", "private"), ("c",)) == both

    missing = StoredClientState(note="missing", is_missing=True)
    assert still_counts(missing, AcceptedUpdate(4, ""), 3, ("c",), ("c",)).is_lost
    old = still_counts(missing, AcceptedUpdate(3, ""), 3, ("c",), ("c",))
    assert (old.is_missing, old.is_lost) == (False, False)
    old = still_counts(missing, AcceptedUpdate(3, ""), 3, ("c", "private"), ("c",))
    assert (old.is_missing, old.is_lost) == (True, False)
    # No strategy's state: private tensors alone are lost for their client only.
    assert not still_counts(missing, AcceptedUpdate(4, ""), 0, ("private",), ()).is_lost
