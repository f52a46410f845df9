"""Strategies whose clients do something: whole federations against plain numpy from the papers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from fl_queue.aggregation.exact_sum import ExactSum
from fl_queue.aggregation.scales import choose_scales
from fl_queue.aggregation.sum_format import sum_format
from fl_queue.client.local_update import ClientStrategy, TrainingResult, initial_model, train_update
from fl_queue.config import loading
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import ConfigError, MessageError
from fl_queue.protocol import tensor_layout
from fl_queue.protocol.manifest import Manifest, TensorSpec
from fl_queue.strategies import base, get_strategy, gradient_sum, layouts
from fl_queue.tasks.base import ClientData, OnEpoch, Task
from fl_queue.tasks.context import ClientContext

#: Features; samples of each client: with full batches a client takes as many steps as epochs.
WIDTH, SIZES = 4, (5, 9, 14)
COHORTS = ((0, 1), (1, 2), (0, 2), (0, 1, 2))
RATE = 0.05
Arrays = dict[str, np.ndarray]


def rows(client: int) -> tuple[np.ndarray, np.ndarray]:
    """A client's samples: a different line for each client."""
    rng = np.random.default_rng(client)
    x = rng.normal(0, 1, (SIZES[client], WIDTH))
    return x.astype(np.float32), (x @ rng.normal(0, 1, WIDTH) + client)[:, None].astype(np.float32)


class Line(Task):
    """Least squares, with a number of epochs for each client."""

    def build_model(self) -> nn.Module:
        return nn.Linear(WIDTH, 1)

    def client_data(self, context: ClientContext) -> ClientData:
        x, y = rows(int(context.client))
        train = TensorDataset(torch.tensor(x), torch.tensor(y))
        return ClientData(train, TensorDataset(torch.zeros(0, WIDTH), torch.zeros(0, 1)))

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return nn.functional.mse_loss(output, target)


class Skipping(Line):
    """A task with a training of its own."""

    def train(
        self, model: nn.Module, data: ClientData, context: ClientContext, on_epoch: OnEpoch
    ) -> Mapping[str, Any]:
        return {"num_examples": 1}


def loaded(
    name: str, options: Mapping[str, Any], momentum: float = 0.0, private: Sequence[str] = ()
) -> RunConfig:
    raw = {
        "model": {"private": list(private)},
        "run": {"task": "line:Line"},
        "train": {"batch_size": 100, "learning_rate": RATE, "momentum": momentum},
        "aggregation": {"strategy": name, "weighting": get_strategy(name).WEIGHTINGS[0]},
        "strategy": dict(options),
    }
    return RunConfig.from_dict(raw)


def train(
    task: Task,
    manifest: Manifest,
    model: Arrays,
    client: int,
    steps: int,
    plan: ClientStrategy,
    n: int,
) -> TrainingResult:
    context = ClientContext.of(task.config, client=str(client), run="line", round_number=n)
    object.__setattr__(context, "epochs", steps)
    return train_update(task, manifest, model, context, plan=plan)


def federate(
    name: str,
    options: Mapping[str, Any],
    steps: Sequence[int] = (3, 3, 3),
    momentum: float = 0.0,
    kept: dict[int, dict[str, Arrays]] | None = None,
    private: Sequence[str] = (),
) -> list[Arrays]:
    """The models after each round, made by what clients and aggregators run; ``kept`` is filled."""
    settings = loaded(name, options, momentum, private)
    strategy, task = get_strategy(name, settings.strategy), Line(settings)
    manifest, model = initial_model(task, 1)
    ranges = strategy.ranges(settings.aggregation)
    limits = {key: span.limit for key, span in ranges.items()}
    scales = choose_scales(3, 14, limits, {key: span.finest for key, span in ranges.items()})
    state: dict[str, Arrays] = {}
    kept = {} if kept is None else kept
    models = [model]
    for version, cohort in enumerate(COHORTS, 1):
        total = ExactSum(layouts.update_manifest(strategy, manifest), scales, 14)
        fetched = {key: state[key] for key in strategy.fetched if key in state}
        for client in cohort:
            plan = ClientStrategy(strategy, fetched, kept.get(client, {}))
            made = train(task, manifest, models[-1], client, steps[client], plan, version)
            sent = {spec.name: values for spec, _, values in made.pieces()}
            weight = SIZES[client] if strategy.WEIGHTINGS[0] == "examples" else 1
            layouts.check_scalars(strategy, made.answer.scalars)
            total.add_blocks(lambda s, sent=sent: [sent[s.name]], weight, made.answer.scalars)
            kept[client] = {
                key: {s.name: made.kept(key, s.name) for s in layout.tensors}
                for key, layout in layouts.client_layouts(strategy, manifest).items()
            }
        pieces: dict[str, list[bytes]] = {key: [] for key in strategy.server_state}
        sinks = {
            key: lambda block, into=into: into.append(block.tobytes())
            for key, into in pieces.items()
        }
        facts = base.RoundInfo(version, len(cohort), len(SIZES))
        blocks = strategy.next_model(manifest, models[-1], total, state, sinks, facts)
        models.append(tensor_layout.views(manifest, b"".join(block.tobytes() for block in blocks)))
        state = {k: tensor_layout.views(manifest, b"".join(parts)) for k, parts in pieces.items()}
    return models


def flat(model: Arrays) -> np.ndarray:
    """weight and bias as one vector, float64."""
    return np.concatenate([model["weight"].ravel(), model["bias"]]).astype(np.float64)


def gradient(client: int, w: np.ndarray) -> np.ndarray:
    x, y = (part.astype(np.float64) for part in rows(client))
    x = np.hstack([x, np.ones((len(x), 1))])
    return 2 / len(x) * x.T @ (x @ w - y[:, 0])


def loss(client: int, w: np.ndarray) -> float:
    x, y = (part.astype(np.float64) for part in rows(client))
    return float(((np.hstack([x, np.ones((len(x), 1))]) @ w - y[:, 0]) ** 2).mean())


def check(models: list[Arrays], expected: list[np.ndarray]) -> None:
    assert len(models) == len(expected) + 1
    for model, reference in zip(models[1:], expected, strict=True):
        assert np.abs(flat(model) - reference).max() < 1e-6
    assert np.abs(expected[-1] - flat(models[0])).max() > 0.01


def weights(cohort: Sequence[int]) -> np.ndarray:
    sizes = np.array([SIZES[client] for client in cohort], float)
    return sizes / sizes.sum()


def local(client: int, x: np.ndarray, steps: int, mu: float = 0.0, rho: float = 0.0) -> np.ndarray:
    w, v = x.copy(), np.zeros_like(x)
    for _ in range(steps):
        v = rho * v + gradient(client, w) + mu * (w - x)
        w = w - RATE * v
    return w


def test_fedprox_is_its_equations() -> None:
    models = federate("fedprox", {"mu": 0.5}, (3, 4, 5), momentum=0.5)
    x, expected = flat(models[0]), []
    for cohort in COHORTS:
        ends = [local(client, x, 3 + client, 0.5, 0.5) for client in cohort]
        x = sum(p * y for p, y in zip(weights(cohort), ends, strict=True))
        expected.append(x)
    check(models, expected)


@pytest.mark.parametrize(("mu", "rho"), [(0.0, 0.0), (0.0, 0.9), (0.3, 0.0)])
def test_fednova_is_its_equations(mu: float, rho: float) -> None:
    steps = (2, 4, 7)
    models = federate("fednova", {"mu": mu}, steps, rho)

    def norm(tau: int) -> float:  # The paper's closed forms.
        if rho:
            return (tau - rho * (1 - rho**tau) / (1 - rho)) / (1 - rho)
        return (1 - (1 - RATE * mu) ** tau) / (RATE * mu) if mu else float(tau)

    x, expected = flat(models[0]), []
    for cohort in COHORTS:
        p = weights(cohort)
        d = [(x - local(c, x, steps[c], mu, rho)) / (RATE * norm(steps[c])) for c in cohort]
        tau = [steps[c] if mu else norm(steps[c]) for c in cohort]
        x = x - (p * tau).sum() * RATE * sum(p_i * d_i for p_i, d_i in zip(p, d, strict=True))
        expected.append(x)
    check(models, expected)


def test_fednova_with_equal_steps_is_fedavg() -> None:
    for momentum in (0.0, 0.9):
        plain = federate("fedavg", {}, momentum=momentum)
        nova = federate("fednova", {}, momentum=momentum)
        assert max(np.abs(flat(a) - flat(b)).max() for a, b in zip(plain, nova, strict=True)) < 1e-6


def test_momentum_and_pull_together_are_the_steps_of_a_constant_gradient() -> None:
    w, v = 0.0, 0.0
    for _ in range(9):
        v = 0.8 * v + 1.0 + 0.4 * w
        w -= 0.1 * v
    assert abs(gradient_sum.accumulated(9, 0.8, 0.1 * 0.4) - -w / 0.1) < 1e-12


@pytest.mark.parametrize("q", [0.0, 1.0, 3.0])
def test_qfedavg_is_its_equations(q: float) -> None:
    models = federate("qfedavg", {"q": q})
    x, expected = flat(models[0]), []
    for cohort in COHORTS:
        delta, h = np.zeros_like(x), 0.0
        for client in cohort:
            f, g = loss(client, x) + 1e-10, (x - local(client, x, 3)) / RATE
            delta = delta + f**q * g
            h += q * f ** (q - 1) * (g**2).sum() + f**q / RATE
        x = x - delta / h
        expected.append(x)
    check(models, expected)


@pytest.mark.parametrize("rho", [0.0, 0.5])
def test_scaffold_is_its_equations(rho: float) -> None:
    steps, eta_g = (2, 4, 7), 0.8
    models = federate("scaffold", {"server_learning_rate": eta_g}, steps, rho)
    x = flat(models[0])
    c, c_i = np.zeros_like(x), [np.zeros_like(x) for _ in SIZES]
    expected = []
    for cohort in COHORTS:
        moves, changes = [], []
        for client in cohort:
            y, v = x.copy(), np.zeros_like(x)
            distance = 0.0  # How far a constant gradient goes: K eta_l without momentum.
            a = 0.0
            for _ in range(steps[client]):
                v = rho * v + gradient(client, y) - c_i[client] + c
                y = y - RATE * v
                a = rho * a + 1
                distance += RATE * a
            new = c_i[client] - c + (x - y) / distance
            moves.append(y - x)
            changes.append(new - c_i[client])
            c_i[client] = new
        x = x + eta_g * sum(moves) / len(cohort)
        c = c + len(cohort) / len(SIZES) * sum(changes) / len(cohort)
        expected.append(x)
    check(models, expected)
    assert np.abs(c - sum(c_i) / len(SIZES)).max() < 1e-12


def test_feddyn_is_its_equations() -> None:
    alpha = 0.1
    models = federate("feddyn", {"alpha": alpha})
    x = flat(models[0])
    h, g = np.zeros_like(x), [np.zeros_like(x) for _ in SIZES]
    expected = []
    for cohort in COHORTS:
        ends = []
        for client in cohort:
            y = x.copy()
            for _ in range(3):
                y = y - RATE * (gradient(client, y) - g[client] + alpha * (y - x))
            g[client] = g[client] - alpha * (y - x)
            ends.append(y)
        h = h - alpha / len(SIZES) * sum(y - x for y in ends)
        x = sum(ends) / len(ends) - h / alpha
        expected.append(x)
    check(models, expected)


def test_private_layers_are_the_equations_of_fedper() -> None:
    steps = (2, 4, 7)
    kept: dict[int, dict[str, Arrays]] = {}
    models = federate("fedavg", {}, steps, kept=kept, private=("bias",))
    x, own = flat(models[0]), dict[int, float]()
    for model, cohort in zip(models[1:], COHORTS, strict=True):
        # Each begins with the shared weights and its own bias, that of version 0 the first time.
        begun = {client: np.append(x[:-1], own.get(client, x[-1])) for client in cohort}
        ends = {client: local(client, begun[client], steps[client]) for client in cohort}
        own |= {client: end[-1] for client, end in ends.items()}
        shared = sum(p * ends[c][:-1] for p, c in zip(weights(cohort), cohort, strict=True))
        x = np.append(shared, x[-1])
        assert np.abs(flat(model) - x).max() < 1e-6
    assert own.keys() == kept.keys() == {0, 1, 2}
    for client, state in kept.items():
        assert abs(float(state["private"]["bias"][0]) - own[client]) < 1e-6
        assert abs(own[client] - x[-1]) > 0.01


def test_without_fairness_and_before_there_are_controls_it_is_the_uniform_mean() -> None:
    steps = (2, 4, 7)
    x = flat(federate("qfedavg", {"q": 0.0}, steps)[0])
    uniform = []
    for cohort in COHORTS:
        x = sum(local(client, x, steps[client]) for client in cohort) / len(cohort)
        uniform.append(x)
    check(federate("qfedavg", {"q": 0.0}, steps), uniform)
    # SCAFFOLD's control variates are zero in the first round.
    first = federate("scaffold", {}, steps)[1]
    assert np.abs(flat(first) - uniform[0]).max() < 1e-6


def bits(models: list[Arrays]) -> list[bytes]:
    return [model[name].tobytes() for model in models for name in sorted(model)]


@pytest.mark.parametrize(("pull", "rho"), [(0.0, 0.0), (1.5, 0.0), (1.5, 0.5)])
def test_ditto_is_its_equations_and_its_versions_are_those_of_fedavg(
    pull: float, rho: float
) -> None:
    steps = (2, 4, 7)
    kept: dict[int, dict[str, Arrays]] = {}
    models = federate("ditto", {"lambda": pull}, steps, rho, kept)
    own: dict[int, np.ndarray] = {}
    for model, cohort in zip(models, COHORTS, strict=False):
        w = flat(model)
        for client in cohort:
            v, velocity = own.get(client, w).copy(), np.zeros_like(w)
            for _ in range(steps[client]):
                velocity = rho * velocity + gradient(client, v) + pull * (v - w)
                v = v - RATE * velocity
            own[client] = v
    assert own.keys() == kept.keys() == {0, 1, 2}
    for client, state in kept.items():
        assert np.abs(flat(state["personal"]) - own[client]).max() < 1e-6
        assert np.abs(own[client] - flat(models[-1])).max() > 0.01
    assert bits(models) == bits(federate("fedavg", {}, steps, rho))


def test_without_their_terms_the_bits_are_those_of_fedavg() -> None:
    plain = bits(federate("fedavg", {}, (2, 4, 7), 0.9))
    assert bits(federate("fedprox", {"mu": 0.0}, (2, 4, 7), 0.9)) == plain
    assert bits(federate("fedavgm", {"momentum": 0.0}, (2, 4, 7), 0.9)) == plain


def test_a_task_that_trains_in_a_way_of_its_own_is_refused_where_that_matters() -> None:
    for name in ("fedavg", "fedprox", "ditto"):
        settings = loaded(name, {})
        task = Skipping(settings)
        manifest, model = initial_model(task, 1)
        plan = ClientStrategy(get_strategy(name, settings.strategy))
        if name == "fedavg":
            assert train(task, manifest, model, 0, 1, plan, 1).num_examples == SIZES[0]
            continue
        with pytest.raises(ConfigError, match=r"context\.rule"):
            train(task, manifest, model, 0, 1, plan, 1)


def test_a_config_that_cannot_serve_a_strategy_is_refused_by_field() -> None:
    for name in ("scaffold", "feddyn", "qfedavg"):
        with pytest.raises(ConfigError) as caught:
            loading.load("mnist-3v7", (f"aggregation.strategy={name}",), {})
        assert caught.value.field == "aggregation.weighting"
        assert "set it to uniform" in caught.value.reason
    for name in ("scaffold", "feddyn"):
        uniform = (f"aggregation.strategy={name}", "aggregation.weighting=uniform")
        with pytest.raises(ConfigError) as caught:
            loading.load("mnist-3v7", (*uniform, "update.codec=int8"), {})
        assert caught.value.field == "update.codec"


def exact_step(q: float, losses: Sequence[float], changes: np.ndarray) -> np.ndarray:
    """The step of q-FedAvg over clients with these losses and changes, in rational numbers' place: float64."""
    f = np.array(losses) + 1e-10
    h = q * f ** (q - 1) * (changes**2).sum(axis=1) / RATE + f**q
    return np.asarray((f**q) @ changes / h.sum())


@pytest.mark.parametrize("q", [1.0, 5.0, 10.0])
@pytest.mark.parametrize("level", [1e-4, 1e-3, 0.01, 0.1, 1.0, 10.0])
def test_qfedavg_does_not_stand_still_at_a_small_loss(q: float, level: float) -> None:
    strategy = get_strategy("qfedavg", {"q": q})
    manifest = Manifest((TensorSpec("w", (64,), "parameter"),))
    aggregation = loaded("qfedavg", {"q": q}).aggregation
    found = sum_format(aggregation, {"q": q}, 8)
    draw, exponent = np.random.default_rng(3), 0
    for turn in range(6):
        losses = level * draw.uniform(0.5, 2.0, 8)
        changes = (draw.normal(size=(8, 64)) * 1e-3).astype(np.float32)
        total = ExactSum(layouts.update_manifest(strategy, manifest), found.scales, found.w_max)
        refused = 0
        for f, change in zip(losses, changes, strict=True):
            known = base.ClientTrainingState(
                learning_rate=RATE, base_loss=float(f), change=lambda name, c=change: c,
                parameters=["w"], exponent=exponent,
            )  # fmt: skip
            answer = strategy.answer(known)
            sent = (change.astype(np.float64) * answer.factor).astype("<f4")
            try:
                total.add_blocks(lambda spec, sent=sent: [sent], 1, answer.scalars)
            except MessageError:  # Beyond the limit.
                refused += 1
        if refused:
            exponent += 16  # As after a round that is abandoned for it.
            continue
        pieces = strategy.next_model(manifest, {"w": np.zeros(64, np.float32)}, total)
        new = np.concatenate(list(pieces)).astype(np.float64)
        wanted = exact_step(q, list(losses), changes.astype(np.float64))
        exponent = strategy.next_exponent(total, exponent)
        if turn >= 3:
            assert np.abs(new - wanted).max() < 1e-5 * np.abs(wanted).max()
    assert not refused
    assert -1000 < exponent < 1000


def test_qfedavg_keeps_its_bits_at_ordinary_losses() -> None:
    strategy = get_strategy("qfedavg", {"q": 1.0})

    class Total:
        def __init__(self, h: float) -> None:
            self.h = h

        def scalar_mean(self, name: str) -> float:
            return self.h

    exponents = [strategy.next_exponent(Total(h), 0) for h in (0.07, 1.0, 2.3, 4000.0)]  # type: ignore[arg-type]
    assert exponents == [0, 0, 0, 0]
    assert strategy.next_exponent(Total(1e-9), 0) == -25  # type: ignore[arg-type]
    assert strategy.next_exponent(Total(0.04), -25) == -25  # type: ignore[arg-type]
