"""SCAFFOLD and FedDyn while clients join: what the server keeps stays the mean of what all clients keep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from fl_queue.exact import ExactSum, choose_scales
from fl_queue.records import Manifest, TensorSpec
from fl_queue.strategies import base, get_strategy

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
        self.version = self.base_population = 0

    def train(self, client: int, total: ExactSum) -> None:
        have: dict[str, Any] = {"server": self.server, "kept": self.kept.get(client, {})}
        have |= {"learning_rate": RATE, "parameters": ["w"]}
        correction = self.strategy.correction(base.Known(**have))
        offset = np.asarray(correction.offset("w") if correction.offset else 0.0)
        y = self.x.astype(np.float64)
        for _ in range(STEPS):
            gradient = CURVATURES[client] * (y - OPTIMA[client])
            y = y - RATE * (gradient + correction.proximal * (y - self.x) + offset)
        change = (y - self.x).astype(np.float32)
        answer = self.strategy.answer(base.Known(**have, steps=STEPS, change=lambda name: change))
        sent = {"w": change}
        for extra in self.strategy.extras:
            assert answer.extra is not None
            sent[base.extra_name(extra, "w")] = answer.extra(extra, "w").astype(np.float32)
        total.add(sent, 1)
        assert answer.keep is not None
        self.kept[client] = {
            state: {"w": np.asarray(answer.keep(state, "w"), np.float32)}
            for state in self.strategy.client_state
        }

    def round(self, alive: Sequence[int], cohort: Sequence[int]) -> None:
        """One round; clients that were not seen before are new in the population."""
        self.seen |= set(alive)
        ranges = self.strategy.ranges({"limit": 64.0, "buffer_limit": 65536.0})
        scales = choose_scales(len(cohort), 1, {key: span.limit for key, span in ranges.items()})
        total = ExactSum(base.update_manifest(self.strategy, MANIFEST), scales, 1)
        for client in cohort:
            self.train(client, total)
        self.version += 1
        facts = base.Facts(self.version, len(cohort), len(self.seen), self.base_population)
        out: dict[str, list[np.ndarray]] = {state: [] for state in self.strategy.server_state}
        sinks = {state: blocks.append for state, blocks in out.items()}
        made = self.strategy.next_model(MANIFEST, {"w": self.x}, total, self.server, sinks, facts)
        self.x = np.concatenate(list(made))
        self.server = {state: {"w": np.concatenate(blocks)} for state, blocks in out.items()}
        self.base_population = len(self.seen)

    def means(self) -> tuple[float, float]:
        """What the server keeps, and the mean of what the clients seen keep."""
        (ours,), (theirs,) = self.strategy.server_state, self.strategy.client_state
        clients = [float(self.kept[who][theirs]["w"][0]) for who in self.kept]
        return float(self.server[ours]["w"][0]), sum(clients) / len(self.seen)


@pytest.mark.parametrize(("name", "options"), STRATEGIES)
@pytest.mark.parametrize("seed", range(8))
def test_whoever_joins_when_the_server_keeps_the_mean_of_all(
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


def test_with_nobody_new_and_where_it_is_not_recorded_no_bit_changes() -> None:
    values = np.random.default_rng(1).normal(0, 1e-3, 1000)
    for facts in (base.Facts(3, 2, 7, 7), base.Facts(3, 2, 7)):
        assert facts.over_population(values).tobytes() == values.tobytes()
    assert (base.Facts(3, 2, 8, 4).over_population(values) == values / 2).all()
