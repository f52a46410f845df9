"""Each strategy's server against plain numpy written from its equations, round after round."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from fl_queue.aggregation.exact_sum import ExactSum
from fl_queue.aggregation.scales import choose_scales
from fl_queue.config import loading
from fl_queue.config.schema import AggregationSection
from fl_queue.errors import ConfigError, MessageError
from fl_queue.protocol import tensor_layout
from fl_queue.protocol.manifest import Manifest, TensorSpec
from fl_queue.strategies import STRATEGIES, base, get_strategy, layouts, load_strategy
from fl_queue.strategies.base import RoundInfo, Strategy

#: Two parameters, of which one takes more than a block, and a buffer that no optimiser may touch.
MANIFEST = Manifest(
    (
        TensorSpec("bn.running_mean", (2,), "float_buffer"),
        TensorSpec("w.0", (3, 5), "parameter"),
        TensorSpec("w.1", (base.BLOCK + 3,), "parameter"),
    )
)
AGGREGATION = AggregationSection(limit=64.0, buffer_limit=65536.0)
ROUNDS, CLIENTS, W_MAX = 4, 3, 100
Arrays = dict[str, np.ndarray]


def server(
    strategy: Strategy, updates: list[list[tuple[Arrays, int, dict[str, float]]]], n: int = 9
) -> list[tuple[Arrays, dict[str, Arrays]]]:
    """Models and states after each round, from zero, of what clients sent with which weight."""
    ranges = strategy.ranges(AGGREGATION)
    scales = choose_scales(
        CLIENTS,
        W_MAX,
        {name: span.limit for name, span in ranges.items()},
        {name: span.finest for name, span in ranges.items()},
    )
    model: Arrays = {s.name: np.zeros(s.shape, np.float32) for s in MANIFEST.tensors}
    state: dict[str, Arrays] = {}
    made = []
    for version, sent in enumerate(updates, 1):
        total = ExactSum(layouts.update_manifest(strategy, MANIFEST), scales, W_MAX)
        for tensors, weight, scalars in sent:
            total.add_blocks(lambda spec, t=tensors: [t[spec.name].reshape(-1)], weight, scalars)
        pieces: dict[str, list[bytes]] = {name: [] for name in strategy.server_state}
        sinks: dict[str, Callable[[np.ndarray], object]] = {
            name: lambda block, into=into: into.append(block.tobytes())
            for name, into in pieces.items()
        }
        facts = RoundInfo(version, len(sent), n)
        blocks = strategy.next_model(MANIFEST, model, total, state, sinks, facts)
        body = b"".join(block.tobytes() for block in blocks)
        model = tensor_layout.views(MANIFEST, body)
        layout = layouts.state_manifest(MANIFEST)
        state = {
            name: tensor_layout.views(layout, b"".join(parts)) for name, parts in pieces.items()
        }
        made.append((model, state))
    return made


def plain_updates(seed: int = 1) -> list[list[tuple[Arrays, int, dict[str, float]]]]:
    """Rounds of updates, some of them exactly zero somewhere."""
    rng = np.random.default_rng(seed)

    def update() -> Arrays:
        made = {s.name: rng.normal(0, 0.1, s.shape).astype(np.float32) for s in MANIFEST.tensors}
        made["w.0"][0] = 0.0
        return made

    return [
        [(update(), int(rng.integers(1, W_MAX)), {}) for _ in range(CLIENTS)] for _ in range(ROUNDS)
    ]


def means(updates: list[list[tuple[Arrays, int, dict[str, float]]]], name: str) -> list[np.ndarray]:
    """The weighted mean of each round, in float64."""
    return [
        sum(weight * tensors[name].astype(np.float64) for tensors, weight, _ in sent)
        / sum(weight for _, weight, _ in sent)
        for sent in updates
    ]


def momentum(deltas: list[np.ndarray], eta: float, beta: float, nesterov: bool) -> np.ndarray:
    x, b = np.zeros_like(deltas[0]), np.zeros_like(deltas[0])
    for delta in deltas:
        b = beta * b + delta
        x = x + eta * (delta + beta * b if nesterov else b)
    return x


def adaptive(
    deltas: list[np.ndarray],
    second: Callable[[np.ndarray, np.ndarray], np.ndarray],
    eta: float,
    beta_1: float,
    tau: float,
    corrected: tuple[float, float] | None = None,
) -> np.ndarray:
    x, m, v = (np.zeros_like(deltas[0]) for _ in range(3))
    for t, delta in enumerate(deltas, 1):
        m = beta_1 * m + (1 - beta_1) * delta
        v = second(v, delta**2)
        rate = eta
        if corrected:
            rate = eta * np.sqrt(1 - corrected[1] ** t) / (1 - corrected[0] ** t)
        x = x + rate * m / (np.sqrt(v) + tau)
    return x


def adam(v: np.ndarray, square: np.ndarray) -> np.ndarray:
    return 0.99 * v + 0.01 * square


def yogi(v: np.ndarray, square: np.ndarray) -> np.ndarray:
    return v - 0.01 * square * np.sign(v - square)


SERVERS: list[tuple[str, Mapping[str, Any], Callable[[list[np.ndarray]], np.ndarray]]] = [
    ("fedavg", {}, lambda d: sum(d)),
    ("fedavgm", {"momentum": 0.7}, lambda d: momentum(d, 1.0, 0.7, False)),
    (
        "fedavgm",
        {"momentum": 0.7, "nesterov": True, "server_learning_rate": 0.5},
        lambda d: momentum(d, 0.5, 0.7, True),
    ),
    ("fedadagrad", {}, lambda d: adaptive(d, lambda v, s: v + s, 0.1, 0.0, 1e-3)),
    ("fedadam", {"tau": 0.01}, lambda d: adaptive(d, adam, 0.1, 0.9, 0.01)),
    (
        "fedadam",
        {"bias_correction": True},
        lambda d: adaptive(d, adam, 0.1, 0.9, 1e-3, (0.9, 0.99)),
    ),
    ("fedyogi", {"server_learning_rate": 0.03}, lambda d: adaptive(d, yogi, 0.03, 0.9, 1e-3)),
]


@pytest.mark.parametrize(("name", "options", "reference"), SERVERS)
def test_a_server_is_its_equations(
    name: str, options: Mapping[str, Any], reference: Callable[[list[np.ndarray]], np.ndarray]
) -> None:
    updates = plain_updates()
    model, state = server(get_strategy(name, options), updates)[-1]

    for tensor in ("w.0", "w.1"):
        expected = reference(means(updates, tensor))
        assert np.abs(model[tensor] - expected).max() < 1e-6
    # Buffers have their mean, whatever the optimiser.
    assert np.abs(model["bn.running_mean"] - sum(means(updates, "bn.running_mean"))).max() < 1e-6
    assert {frozenset(tensors) for tensors in state.values()} <= {frozenset({"w.0", "w.1"})}


def test_without_momentum_the_bits_are_those_of_fedavg() -> None:
    updates = plain_updates()
    plain = server(get_strategy("fedavg"), updates)
    still = server(get_strategy("fedavgm", {"momentum": 0.0}), updates)

    for (expected, _), (model, _) in zip(plain, still, strict=True):
        assert {n: v.tobytes() for n, v in model.items()} == {
            n: v.tobytes() for n, v in expected.items()
        }


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_a_strategy_is_accepted_by_a_config_and_documented(name: str) -> None:
    strategy = STRATEGIES[name]
    weighting = f"aggregation.weighting={strategy.WEIGHTINGS[0]}"
    loaded = loading.load(
        "mnist-3v7", (f"aggregation.strategy={name}", weighting, "round.cohort=12"), {}
    )

    assert set(loaded.strategy) == set(strategy.OPTIONS)
    assert (
        f"`{name}`" in (loading.preset_folder().parent / "docs/reference/strategies.md").read_text()
    )


@pytest.mark.parametrize(
    ("overrides", "field", "reason"),
    [
        (("aggregation.strategy=fedadm",), "aggregation.strategy", "fedadam"),
        (
            ("aggregation.strategy=fedadam", "strategy.tua=1"),
            "strategy.tua",
            "did you mean strategy.tau?",
        ),
        (("strategy.momentum=0.9",), "strategy.momentum", "no options"),
        (
            ("aggregation.strategy=fedavgm", "strategy.momentum=1.5"),
            "strategy.momentum",
            "at most 1",
        ),
        (("stratgy.momentum=1",), "stratgy", "did you mean strategy?"),
    ],
)
def test_what_a_config_cannot_serve_is_refused_by_field(
    overrides: tuple[str, ...], field: str, reason: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        loading.load("mnist-3v7", overrides, {})

    assert caught.value.field == field
    assert reason in caught.value.reason


class Own(Strategy):
    """A user's."""


class Greedy(Strategy):
    """One that wants clients to send more."""

    scalars = {"more": 1.0}  # noqa: RUF012


def test_an_own_strategy_is_loaded_only_if_it_is_allowed() -> None:
    name = f"{__name__}:Own"
    assert type(get_strategy(name)) is Strategy
    with pytest.raises(ConfigError, match=f"--strategy-allow {name}"):
        load_strategy(name)
    for allowed in (name, f"{__name__}:*"):
        assert type(load_strategy(name, {}, [allowed])).__name__ == "Own"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (f"{__name__}:Missing", "no class Missing"),
        (f"{__name__}:MANIFEST", "no class MANIFEST"),
        (f"{__name__}:Greedy", "asks clients for more"),
        ("no_such_module:Own", "cannot be imported"),
    ],
)
def test_an_own_strategy_that_cannot_be_is_refused(name: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        load_strategy(name, {}, [name])


def test_scalars_are_those_of_the_strategy_and_finite() -> None:
    for scalars in ({}, {"more": 2.0}, {"more": float("nan")}, {"more": 0.0, "other": 0.0}):
        with pytest.raises(MessageError, match="scalar"):
            layouts.check_scalars(Greedy(), scalars)
    layouts.check_scalars(Greedy(), {"more": -1.0})
