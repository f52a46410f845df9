"""Each rule that needs all updates against plain numpy written from its formula, and what it withstands."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_queue.aggregation.scales import Scale
from fl_queue.aggregation.update_matrix import UpdateMatrix
from fl_queue.config import loading
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import CheckpointError, ConfigError, MessageError
from fl_queue.protocol import tensor_layout
from fl_queue.protocol.manifest import Manifest, TensorSpec
from fl_queue.strategies import STRATEGIES, get_strategy, load_strategy, robust
from fl_queue.strategies.bulyan import Bulyan
from fl_queue.strategies.median import Median
from fl_queue.strategies.robust import Robust

#: Two parameters, of which one takes more than a block, and buffers that no distance may see.
MANIFEST = Manifest(
    (
        TensorSpec("bn.count", (2,), "integer_buffer"),
        TensorSpec("bn.running_var", (2,), "float_buffer"),
        TensorSpec("w.0", (3, 5), "parameter"),
        TensorSpec("w.1", (65536 + 3,), "parameter"),
    )
)
SCALES = {"parameter": Scale(31, 64.0), "float_buffer": Scale(31, 65536.0)}
Update = dict[str, np.ndarray]
N = 11


def update(seed: int, spread: float = 0.1) -> Update:
    rng = np.random.default_rng(seed)
    made: Update = {
        spec.name: rng.normal(0, spread, spec.shape).astype(np.float32)
        for spec in MANIFEST.tensors
        if spec.kind != "integer_buffer"
    }
    return made | {"bn.count": rng.integers(0, 9, 2)}


UPDATES = [update(seed) for seed in range(N)]


def gathered(
    folder: Path, updates: Sequence[Update], weights: Sequence[int] = (), order: Any = None
) -> UpdateMatrix:
    """The updates of ``c00``, ``c01``, ..., as they came in that order."""
    found = UpdateMatrix(MANIFEST, SCALES, 100, folder)
    for index in order or range(len(updates)):
        tensors = updates[index]
        weight = weights[index] if weights else 1
        found.add_blocks(f"c{index:02}", lambda spec, t=tensors: [t[spec.name].ravel()], weight)
    return found


def model_bytes(rule: Robust, updates: UpdateMatrix, value: float = 1.0) -> bytes:
    base = {spec.name: np.full(spec.shape, value, spec.dtype) for spec in MANIFEST.tensors}
    blocks = rule.next_model(MANIFEST, base, rule.merged(updates))
    return b"".join(block.tobytes() for block in blocks)


def model(rule: Robust, updates: UpdateMatrix) -> Update:
    return tensor_layout.views(MANIFEST, model_bytes(rule, updates))


def flat(tensors: Update) -> np.ndarray:
    """The parameters as one float64 vector."""
    return np.concatenate([tensors[name].astype(np.float64).ravel() for name in ("w.0", "w.1")])


def stacked(updates: Sequence[Update]) -> np.ndarray:
    return np.stack([flat(tensors) for tensors in updates])


# The references: u has a row for each update.


def trimmed(u: np.ndarray, b: int) -> np.ndarray:
    return np.sort(u, axis=0)[b : len(u) - b].mean(axis=0)


def krum_order(u: np.ndarray, f: int) -> list[int]:
    scores = []
    for i in range(len(u)):
        away = sorted(np.sum((u[i] - u[j]) ** 2) for j in range(len(u)) if j != i)
        scores.append(sum(away[: max(1, len(u) - f - 2)]))
    return sorted(range(len(u)), key=lambda i: scores[i])


def multi_krum(u: np.ndarray, f: int, m: int) -> np.ndarray:
    return u[krum_order(u, f)[:m]].mean(axis=0)


def bulyan(u: np.ndarray, f: int) -> np.ndarray:
    left, chosen = list(range(len(u))), []
    for _ in range(len(u) - 2 * f):
        chosen.append(left[krum_order(u[left], f)[0]])
        left.remove(chosen[-1])
    s = u[chosen]
    nearest = np.argsort(abs(s - np.median(s, axis=0)), axis=0)[: len(s) - 2 * f]
    return np.take_along_axis(s, nearest, axis=0).mean(axis=0)


def geometric_median(u: np.ndarray, a: np.ndarray) -> np.ndarray:
    """By Weiszfeld's algorithm from the mean, with as many steps as it takes for these updates."""
    z = np.average(u, axis=0, weights=a)
    for _ in range(25):
        z = np.average(u, axis=0, weights=a / np.maximum(1e-5, np.linalg.norm(u - z, axis=1)))
    return z


#: Name, options, and the same from its formula.
RULES: list[tuple[str, dict[str, Any], Callable[[np.ndarray], np.ndarray]]] = [
    ("median", {}, lambda u: np.median(u, axis=0)),
    ("trimmed_mean", {"f": 2, "beta": 0.0}, lambda u: trimmed(u, 2)),
    ("trimmed_mean", {"beta": 0.3}, lambda u: trimmed(u, 3)),
    ("krum", {"f": 2}, lambda u: u[krum_order(u, 2)[0]]),
    ("multi_krum", {"f": 2}, lambda u: multi_krum(u, 2, N - 4)),
    ("multi_krum", {"f": 1, "m": 3}, lambda u: multi_krum(u, 1, 3)),
    ("bulyan", {"f": 2}, lambda u: bulyan(u, 2)),
    ("geometric_median", {}, lambda u: geometric_median(u, np.ones(N))),
]
NAMES = [f"{name} {options}" for name, options, _ in RULES]


def rule_of(name: str, options: dict[str, Any] | None = None) -> Robust:
    rule = get_strategy(name, options)
    assert isinstance(rule, Robust)
    return rule


@pytest.mark.parametrize(("name", "options", "reference"), RULES, ids=NAMES)
def test_a_rule_is_its_formula_and_takes_updates_in_any_order(
    name: str,
    options: dict[str, Any],
    reference: Callable[[np.ndarray], np.ndarray],
    tmp_path: Path,
) -> None:
    rule = rule_of(name, options)
    made = model_bytes(rule, gathered(tmp_path, UPDATES))

    new = flat(tensor_layout.views(MANIFEST, made))
    np.testing.assert_allclose(new, 1.0 + reference(stacked(UPDATES)), rtol=0, atol=1e-6)
    shuffled = np.random.default_rng(5).permutation(N).tolist()
    assert model_bytes(rule, gathered(tmp_path, UPDATES, order=shuffled)) == made


def test_rules_merge_a_block_of_any_size_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    updates = gathered(tmp_path, UPDATES)
    rules = [rule_of(name, options) for name, options, _ in RULES]
    before = [model_bytes(rule, updates) for rule in rules]

    monkeypatch.setattr(robust, "_MEMORY", 5000 * 24 * N)

    assert [model_bytes(rule, updates) for rule in rules] == before


def test_the_geometric_median_weighs_updates(tmp_path: Path) -> None:
    weights = [1 + 9 * index for index in range(N)]
    made = model(rule_of("geometric_median"), gathered(tmp_path, UPDATES, weights))
    expected = 1.0 + geometric_median(stacked(UPDATES), np.array(weights, float))
    np.testing.assert_allclose(flat(made), expected, rtol=0, atol=1e-6)


def test_the_geometric_median_comes_to_an_update_that_most_agree_on(tmp_path: Path) -> None:
    # More than half are equal: that is the geometric median, and smoothing divides by no zero.
    sent = [UPDATES[0]] * 4 + UPDATES[1:4]
    rule = rule_of("geometric_median", {"iterations": 60})
    np.testing.assert_allclose(
        flat(model(rule, gathered(tmp_path, sent))), 1.0 + flat(UPDATES[0]), rtol=0, atol=1e-4
    )


@settings(max_examples=30)
@given(
    count=st.integers(1, 12),
    size=st.integers(0, 40),
    seed=st.integers(0, 2**32 - 1),
    cut=st.integers(0, 5),
)
def test_coordinate_rules_of_any_shape(
    count: int, size: int, seed: int, cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    manifest = Manifest((TensorSpec("w", (size,), "parameter"),))
    rng = np.random.default_rng(seed)
    # Few different values: ties everywhere.
    u = rng.integers(-3, 4, (count, size)).astype(np.float32)
    f = min(cut, (count - 1) // 2)
    updates = UpdateMatrix(manifest, SCALES, 1, tmp_path_factory.getbasetemp())
    for index in rng.permutation(count):
        updates.add_blocks(f"c{index:02}", lambda spec, row=u[index]: [row], 1)

    for rule, expected in (
        (rule_of("median"), np.median(u, axis=0)),
        (rule_of("trimmed_mean", {"f": f, "beta": 0.0}), trimmed(u.astype(np.float64), f)),
    ):
        made = rule.merged(updates).mean_block("w", 0, size)
        np.testing.assert_allclose(made, expected, rtol=0, atol=1e-6)


def test_nothing_trimmed_is_the_uniform_mean(tmp_path: Path) -> None:
    made = model(rule_of("trimmed_mean", {"beta": 0.0}), gathered(tmp_path, UPDATES))
    np.testing.assert_allclose(flat(made), 1.0 + stacked(UPDATES).mean(axis=0), rtol=0, atol=1e-6)


def test_without_hostile_clients_bulyan_is_the_uniform_mean(tmp_path: Path) -> None:
    made = model(rule_of("bulyan", {"f": 0}), gathered(tmp_path, UPDATES))
    np.testing.assert_allclose(flat(made), 1.0 + stacked(UPDATES).mean(axis=0), rtol=0, atol=1e-6)


def test_the_best_one_of_multi_krum_is_krums(tmp_path: Path) -> None:
    one = model(rule_of("multi_krum", {"f": 2, "m": 1}), gathered(tmp_path, UPDATES))
    krum = model(rule_of("krum", {"f": 2}), gathered(tmp_path, UPDATES))
    assert flat(one).tobytes() == flat(krum).tobytes()


def test_every_robust_rule_has_its_formula_here() -> None:
    assert {name for name, _, _ in RULES} == {
        name for name, kind in STRATEGIES.items() if kind.needs_all
    }


def test_a_part_that_is_trimmed_is_of_the_number_as_it_was_written() -> None:
    rule = rule_of("trimmed_mean", {"beta": 0.29})
    values = np.arange(100.0).reshape(100, 1) ** 3
    kept = rule.combine(values.copy(), np.ones(100))
    assert kept == pytest.approx((np.arange(29.0, 71.0) ** 3).mean())


def test_bulyan_takes_the_smaller_of_two_values_as_close_to_the_median() -> None:
    values = np.array([[0.0], [1.0], [2.0]])
    # The median is 1; 0 and 2 are as far away.
    assert Bulyan({"f": 1}).combine(values[[2, 0, 1]], np.ones(3)) == [1.0]
    four = np.array([[3.0], [0.0], [1.0], [2.0]])
    assert Bulyan({"f": 1}).combine(four, np.ones(4)) == [1.5]


def test_ties_go_to_the_first_client(tmp_path: Path) -> None:
    # A square: each corner has the same score.
    corners = [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)]
    manifest = Manifest((TensorSpec("w", (2,), "parameter"),))
    for order in itertools.permutations(range(4)):
        updates = UpdateMatrix(manifest, SCALES, 1, tmp_path)
        for index in order:
            row = np.array(corners[index], np.float32)
            updates.add_blocks(f"c{index}", lambda spec, row=row: [row], 1)
        assert rule_of("krum", {"f": 0}).choose(updates).rows == [0]


def test_memory_is_bounded_for_any_number_of_updates() -> None:
    for count in (1, 100, 3000, 100_000):
        parts = list(robust.steps(5, 200_005, count))

        assert [at for at, _ in parts[1:]] == [end for _, end in parts[:-1]]
        assert (parts[0][0], parts[-1][1]) == (5, 200_005)
        most = max(end - at for at, end in parts)
        assert count * most * robust._BYTES_EACH <= robust._MEMORY


def test_buffers_are_the_median_of_the_updates_that_are_let_in(tmp_path: Path) -> None:
    sent = [dict(tensors) for tensors in UPDATES]
    sent[3]["bn.count"] = np.array([2**62, -(2**62)])
    sent[3]["bn.running_var"] = np.array([6e4, -6e4], np.float32)
    for rule in map(rule_of, ("median", "trimmed_mean", "geometric_median")):
        made = model(rule, gathered(tmp_path, sent))
        counts, variances = (
            np.stack([tensors[name] for tensors in sent]) for name in ("bn.count", "bn.running_var")
        )
        assert made["bn.count"].tolist() == np.median(counts, axis=0).tolist()
        expected = np.maximum(0.0, 1.0 + np.median(variances.astype(float), axis=0))
        np.testing.assert_allclose(made["bn.running_var"], expected, atol=1e-6)

    chosen = krum_order(stacked(sent), 2)[0]
    made = model(rule_of("krum", {"f": 2}), gathered(tmp_path, sent))
    assert made["bn.count"].tolist() == sent[chosen]["bn.count"].tolist()


@pytest.mark.parametrize(("name", "options", "reference"), RULES, ids=NAMES)
def test_two_hostile_updates_of_eleven_do_not_carry_the_model_away(
    name: str, options: dict[str, Any], reference: object, tmp_path: Path
) -> None:
    rng = np.random.default_rng(1)
    good = update(99, 1.0)
    honest = [
        {n: (v + rng.normal(0, 0.1, v.shape)).astype(v.dtype) for n, v in good.items()}
        for _ in range(N - 2)
    ]
    hostile = [{n: (-12 * v).astype(v.dtype) for n, v in good.items()}] * 2

    moved = flat(model(rule_of(name, options), gathered(tmp_path, [*hostile, *honest]))) - 1.0

    def away(u: np.ndarray) -> float:
        return float(np.sqrt(np.mean((u - flat(good)) ** 2)))

    mean = stacked([*hostile, *honest]).mean(axis=0)
    assert away(mean) > 2.0
    assert away(moved) < 0.2


def test_rules_that_choose_name_the_clients_left_out(tmp_path: Path) -> None:
    for name, options, chosen in (
        ("krum", {"f": 2}, 1), ("multi_krum", {"f": 2}, N - 4), ("bulyan", {"f": 2}, N - 4),
        ("median", {}, N),
    ):  # fmt: skip
        updates = gathered(tmp_path, [update(99, 9.0), *UPDATES[1:]])
        left_out = rule_of(name, options).merged(updates).left_out
        assert len(left_out) == N - chosen
        assert ("c00" in left_out) == (chosen < N)


# The updates on disk


def test_a_gathered_update_has_the_values_of_the_exact_sum(tmp_path: Path) -> None:
    fine = {name: values.copy() for name, values in UPDATES[0].items()}
    fine["w.0"][0] = [2.0**-33, -(2.0**-33), 2.0**-31, 3 * 2.0**-32, 64.0]
    updates = gathered(tmp_path, [fine])

    row = updates.block("w.0", 0, 5)[0]

    assert row.tolist() == [0.0, 0.0, 2.0**-31, 2.0**-30, 64.0]
    assert not np.signbit(row).any()
    assert list(tmp_path.iterdir()) == []  # It has no name: the disk is freed with the process.


@pytest.mark.parametrize("bad", [np.nan, np.inf, 64.5])
def test_a_gathered_update_beyond_a_limit_leaves_nothing(bad: float, tmp_path: Path) -> None:
    updates = gathered(tmp_path, UPDATES[:2])
    wrong = {name: values.copy() for name, values in UPDATES[2].items()}
    wrong["w.1"][65537] = bad
    with pytest.raises(
        MessageError, match=r"tensor 'w.1' holds .*, outside ±64.0 \(aggregation.limit"
    ):
        updates.add_blocks("c02", lambda spec: [wrong[spec.name].ravel()], 1)

    updates.add_blocks("c02", lambda spec: [UPDATES[2][spec.name].ravel()], 1)
    assert model_bytes(Median(), updates) == model_bytes(Median(), gathered(tmp_path, UPDATES[:3]))
    with pytest.raises(MessageError, match="weight 101"):
        updates.add_blocks("c03", lambda spec: [], 101)
    with pytest.raises(ValueError, match="two updates of c02"):
        updates.add_blocks("c02", lambda spec: [], 1)


def test_a_full_disk_is_reported_as_full() -> None:
    updates = UpdateMatrix(MANIFEST, SCALES, 1, Path("/dev/null/gathered"))
    with pytest.raises(CheckpointError, match="free space there for all updates of a round"):
        updates.add_blocks("c00", lambda spec: [UPDATES[0][spec.name].ravel()], 1)


def test_memory_holds_a_block_of_all_updates_and_not_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(robust, "_MEMORY", 2**18)
    many, size = 24, 20_000
    manifest = Manifest((TensorSpec("w", (size,), "parameter"),))
    values = np.linspace(-1, 1, size, dtype=np.float32)
    tracemalloc.start()
    updates = UpdateMatrix(manifest, SCALES, 1, tmp_path)
    for index in range(many):
        updates.add_blocks(f"c{index}", lambda spec, t=values + index: [t], 1)
    for name, options, _ in RULES:
        rule_of(name, options).merged(updates).mean_block("w", 0, size)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    # All of them are 3.7 MiB as float64.
    assert peak < 2**20


# What n and f must satisfy


def loaded(strategy: str, *overrides: str) -> RunConfig:
    given = (f"aggregation.strategy={strategy}", *overrides)
    return loading.load(None, ("aggregation.weighting=uniform", *given), {})


@pytest.mark.parametrize(
    ("strategy", "options", "fewest"),
    [
        ("krum", ("strategy.f=2",), 7),
        ("multi_krum", ("strategy.f=2",), 7),
        ("multi_krum", ("strategy.f=2", "strategy.m=6"), 10),
        ("bulyan", ("strategy.f=2",), 11),
        ("trimmed_mean", ("strategy.f=3", "strategy.beta=0.0"), 7),
        ("trimmed_mean", ("strategy.beta=0.1",), 10),
        ("median", (), 1),
    ],
)
def test_a_quorum_that_is_too_small_is_refused_when_the_config_is_read(
    strategy: str, options: tuple[str, ...], fewest: int
) -> None:
    shapes: list[tuple[str, ...]] = [
        ("round.cohort=12", f"round.quorum={fewest}"),
        (f"round.cohort={fewest}",),
        ("clients.kind=simulation", f"clients.count={2 * fewest}", "round.cohort=0.5"),
    ]
    for shape in shapes:
        loaded(strategy, *options, *shape)
    if fewest == 1:
        return
    for shape in (
        ("round.cohort=12", f"round.quorum={fewest - 1}"),
        (f"round.quorum={fewest - 1}",),
        (f"round.cohort={fewest - 1}",),
        ("clients.kind=simulation", f"clients.count={fewest - 1}"),
    ):
        with pytest.raises(ConfigError) as caught:
            loaded(strategy, *options, *shape)
        assert caught.value.field == "round.quorum"
        assert f"needs {fewest} updates at least" in caught.value.reason
    # How many will be alive is known when a round opens.
    loaded(strategy, *options, "round.cohort=1.0")


def test_too_few_updates_are_refused_again_when_they_are_merged(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"6 updates, Krum needs 7 \(n >= 2 f \+ 3\)"):
        rule_of("krum", {"f": 2}).merged(gathered(tmp_path, UPDATES[:6]))


def test_options_and_weights_a_rule_cannot_use_are_refused() -> None:
    for strategy, overrides, field in (
        ("krum", ("aggregation.weighting=examples",), "aggregation.weighting"),
        ("median", ("strategy.f=1",), "strategy.f"),
        ("trimmed_mean", ("strategy.beta=0.5",), "strategy.beta"),
        ("geometric_median", ("strategy.smoothing=0",), "strategy.smoothing"),
    ):
        with pytest.raises(ConfigError) as caught:
            loaded(strategy, *overrides)
        assert caught.value.field == field
    loaded("geometric_median", "aggregation.weighting=examples")


def test_an_own_strategy_cannot_need_all_updates() -> None:
    name = f"{Median.__module__}:Median"
    with pytest.raises(ConfigError, match="needs all updates at once"):
        load_strategy(name, {}, (name,))


def test_strategies_declare_how_they_merge() -> None:
    needy = {name for name, strategy in STRATEGIES.items() if strategy.needs_all}
    assert needy == {name for name, _, _ in RULES}
