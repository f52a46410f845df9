"""The exact sum: scales, weights, what is rejected, and both kernels."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import fl_queue
from fl_queue.aggregation import exact_sum
from fl_queue.aggregation.exact_sum import ExactSum
from fl_queue.aggregation.scales import Scale, choose_scales
from fl_queue.errors import ConfigError, MessageError
from fl_queue.protocol import tensor_layout
from fl_queue.protocol.codecs import codec
from fl_queue.protocol.manifest import Manifest, TensorSpec
from tests.support.exact_sums import add, mean, merge
from tests.support.python_process import words_of

MANIFEST = Manifest(
    (
        TensorSpec("n", (2,), "integer_buffer"),
        TensorSpec("running_mean", (2,), "float_buffer"),
        TensorSpec("w", (2, 2), "parameter"),
    )
)
FLOATS = Manifest(MANIFEST.tensors[1:])
SCALES = {"parameter": Scale(31, 64.0), "float_buffer": Scale(20, 65536.0)}
KERNELS = [exact_sum._numba_kernel(), exact_sum._add_numpy]


def update(value: float, count: int = 1) -> dict[str, np.ndarray]:
    return {
        "n": np.array([count, -count], np.int64),
        "running_mean": np.array([300.0, value], np.float32),
        "w": np.full((2, 2), value, np.float32),
    }


def test_default_limits_get_the_finest_scale_that_fits() -> None:
    scales = choose_scales(10, 2**20, {"parameter": 64.0, "float_buffer": 65536.0})
    assert scales == {"parameter": Scale(31, 64.0), "float_buffer": Scale(23, 65536.0)}


@pytest.mark.parametrize(("cohort", "s"), [(63, 31), (64, 30), (127, 30), (128, 29), (2**27, 9)])
def test_the_bound_is_exact(cohort: int, s: int) -> None:
    # 2**20 * 2**6 * 2**31 * cohort < 2**63 needs cohort < 64.
    assert choose_scales(cohort, 2**20, {"parameter": 64.0})["parameter"].s == s


def test_a_value_at_the_limit_that_is_rounded_up_still_fits() -> None:
    # limit * 2**31 = 2**30 - 0.5 is rounded up to 2**30, and 2**33 of those are 2**63.
    limit = (2**30 - 0.5) / 2**31
    assert choose_scales(2**33, 1, {"parameter": limit})["parameter"].s == 30


@pytest.mark.parametrize(
    ("kind", "field"),
    [("parameter", "aggregation.limit"), ("float_buffer", "aggregation.buffer_limit")],
)
def test_a_limit_without_room_is_a_config_error(kind: str, field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        choose_scales(2**30, 2**20, {kind: 64.0})
    assert caught.value.field == field
    assert "lower it" in caught.value.reason


def test_the_mean_is_weighted_and_integers_keep_their_maximum() -> None:
    total = ExactSum(MANIFEST, SCALES, w_max=1000)
    add(total, update(1.0, count=5), 1)
    add(total, update(-3.0, count=2), 3)
    assert (total.total_weight, total.count) == (4, 2)
    assert mean(total, "w").tolist() == [[-2.0, -2.0], [-2.0, -2.0]]
    assert mean(total, "running_mean").tolist() == [300.0, -2.0]
    assert total.mean_block("w", 1, 3).tolist() == [-2.0, -2.0]
    assert total.maximum("n").tolist() == [5, -2]
    assert mean(total, "w").dtype == np.float64


def test_halves_are_rounded_to_even() -> None:
    manifest = Manifest((TensorSpec("w", (4,), "parameter"),))
    total = ExactSum(manifest, {"parameter": Scale(8, 64.0)}, w_max=1)
    half = 2.0**-9
    add(total, {"w": np.array([half, 3 * half, -half, -3 * half], np.float32)}, 1)
    assert (mean(total, "w") * 256).tolist() == [0.0, 2.0, 0.0, -2.0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 64.00001, -65.0])
def test_a_value_outside_the_limit_rejects_the_whole_update(value: float) -> None:
    total = ExactSum(MANIFEST, SCALES, w_max=9)
    add(total, update(1.0), 2)
    before = mean(total, "running_mean").tobytes() + total.maximum("n").tobytes()
    bad = update(5.0, count=9)
    bad["w"][1, 1] = value  # the last tensor: those before it must not have been added
    with pytest.raises(MessageError) as caught:
        add(total, bad, 2)
    assert "'w'" in caught.value.reason
    assert str(np.float32(value)) in caught.value.reason
    assert "64.0" in caught.value.reason
    assert "aggregation.limit" in caught.value.reason
    assert mean(total, "running_mean").tobytes() + total.maximum("n").tobytes() == before
    assert (total.total_weight, total.count) == (2, 1)


def test_a_value_at_the_limit_is_accepted() -> None:
    total = ExactSum(MANIFEST, SCALES, w_max=9)
    add(total, update(-64.0), 9)
    assert mean(total, "w")[0, 0] == -64.0


@pytest.mark.parametrize("weight", [0, -1, 10])
def test_a_weight_out_of_range_is_rejected(weight: int) -> None:
    total = ExactSum(FLOATS, SCALES, w_max=9)
    with pytest.raises(MessageError, match=f"weight {weight} is not 1 to 9"):
        add(total, update(1.0), weight)
    assert total.count == 0


@pytest.mark.parametrize("name", ["n", "w"])
def test_a_sum_of_another_shape_is_refused(name: str) -> None:
    total = ExactSum(MANIFEST, SCALES, w_max=9)
    tensors = {spec.name: np.zeros(spec.shape, np.int64) for spec in total.layout.tensors}
    tensors[name] = tensors[name].reshape(-1)[:1]
    with pytest.raises(MessageError, match="shape"):
        total.add_sum(tensors, 1, 1)
    assert total.count == 0


@pytest.mark.parametrize(
    ("other", "word"),
    [
        (ExactSum(FLOATS, SCALES, w_max=9), "missing"),
        (ExactSum(MANIFEST, SCALES, w_max=10), "w_max"),
    ],
)
def test_sums_of_different_rounds_do_not_add_up(other: ExactSum, word: str) -> None:
    total = ExactSum(MANIFEST, SCALES, w_max=9)
    change = {spec.name: update(1.0)[spec.name] for spec in other.manifest.tensors}
    add(other, change, other.w_max)
    with pytest.raises(MessageError, match=word):
        merge(total, other)
    assert total.count == 0


def test_integer_buffers_of_a_bad_update_leave_no_trace() -> None:
    total = ExactSum(MANIFEST, SCALES, w_max=9)
    add(total, update(1.0, count=1), 1)
    before = [piece.tobytes() for piece in total.pieces()]
    with pytest.raises(MessageError, match="'w' holds nan"):
        add(total, update(1.0, count=7) | {"w": np.full((2, 2), np.nan, np.float32)}, 1)
    assert [piece.tobytes() for piece in total.pieces()] == before


def test_the_mean_of_nothing_is_an_error_and_no_zeros() -> None:
    total = ExactSum(MANIFEST, SCALES, w_max=9)
    for ask in (lambda: mean(total, "w"), lambda: total.maximum("n")):
        with pytest.raises(ValueError, match="no updates"):
            ask()


@pytest.mark.parametrize("kernel", KERNELS, ids=["numba", "numpy"])
def test_kernels_agree_with_python_integers(kernel: exact_sum._Kernel) -> None:
    rng = np.random.default_rng(1)
    size = 2 * exact_sum._BLOCK + 3
    values = (rng.standard_normal(size) * 10.0 ** rng.integers(-9, 1, size)).astype(np.float32)
    total = np.arange(size, dtype=np.int64)
    assert kernel(total, values, 600, 2.0**31, 64.0) == size
    expected = [i + 600 * round(float(v) * 2**31) for i, v in enumerate(values)]
    assert total.tolist() == expected


@pytest.mark.parametrize("kernel", KERNELS, ids=["numba", "numpy"])
@pytest.mark.parametrize("position", [0, exact_sum._BLOCK, 2 * exact_sum._BLOCK + 2])
def test_kernels_stop_before_the_block_of_a_bad_value(
    kernel: exact_sum._Kernel, position: int
) -> None:
    values = np.full(2 * exact_sum._BLOCK + 3, -0.1, np.float32)
    limit = float(np.float32(0.1))
    # The float32 next to 0.1 is above the float64 0.1, and so is outside.
    assert kernel(np.zeros(values.size, np.int64), values, 1, 8.0, 0.1) == 0
    assert kernel(np.zeros(values.size, np.int64), values, 1, 8.0, limit) == values.size
    for bad in (np.nan, np.inf, -0.2):
        values[position] = bad
        total = np.zeros(values.size, np.int64)
        added = kernel(total, values, 1, 8.0, limit)
        assert added <= position
        assert (total[:added] == -1).all()
        assert not total[added:].any()
        assert exact_sum.first_outside(values, limit) == position


def test_a_bad_value_far_in_takes_out_again_what_was_added() -> None:
    manifest = Manifest(
        (TensorSpec("a", (10,), "parameter"), TensorSpec("b", (300_000,), "parameter"))
    )
    total = ExactSum(manifest, SCALES, w_max=9)
    good = {"a": np.ones(10, np.float32), "b": np.full(300_000, 0.5, np.float32)}
    add(total, good, 2)
    before = [piece.tobytes() for piece in total.pieces()]
    bad = {**good, "b": good["b"].copy()}
    bad["b"][250_000] = np.nan
    with pytest.raises(MessageError, match="'b' holds nan"):
        add(total, bad, 9)
    assert [piece.tobytes() for piece in total.pieces()] == before
    assert (total.total_weight, total.count) == (2, 1)


def test_an_encoded_update_is_added_and_taken_out_in_blocks() -> None:
    manifest = Manifest(
        (
            TensorSpec("a", (200_000,), "parameter"),
            TensorSpec("b", (200_000,), "parameter"),
            TensorSpec("n", (2, 1), "integer_buffer"),
        )
    )
    rng = np.random.default_rng(4)
    tensors = {name: rng.standard_normal(200_000).astype(np.float32) for name in "ab"}
    good = tensor_layout.encode_body(manifest, tensors | {"n": np.array([[5], [-7]])})
    tensors["b"][150_000] = 100.0
    bad = tensor_layout.encode_body(manifest, tensors | {"n": np.array([[9], [9]])})
    for name in (*codec.CODECS, "topk:0.5"):
        whole, blockwise = (ExactSum(manifest, SCALES, w_max=9) for _ in range(2))
        encoded = codec.encode(name, manifest, good, 1)
        add(whole, tensor_layout.views(manifest, codec.decode(name, manifest, encoded)), 7)
        blockwise.add_blocks(codec.DecodedBlocks(name, manifest, encoded), 7)
        expected = [piece.tobytes() for piece in whole.pieces()]
        assert [piece.tobytes() for piece in blockwise.pieces()] == expected
        encoded = codec.encode(name, manifest, bad, 1)
        with pytest.raises(MessageError, match=r"'b' holds (99\.9|100)"):
            blockwise.add_blocks(codec.DecodedBlocks(name, manifest, encoded), 9)
        assert [piece.tobytes() for piece in blockwise.pieces()] == expected
        assert (blockwise.total_weight, blockwise.count) == (7, 1)


def test_partial_sums_add_up_to_the_bits_of_the_whole() -> None:
    whole, first, second = (ExactSum(MANIFEST, SCALES, w_max=9) for _ in range(3))
    for part, value, weight in ((first, 0.1, 2), (first, -7.0, 9), (second, 3.3, 5)):
        add(part, update(value, weight), weight)
        add(whole, update(value, weight), weight)
    body = b"".join(piece.tobytes() for piece in second.pieces())
    tensors = tensor_layout.views(exact_sum.sum_manifest(MANIFEST), body)
    first.add_sum(tensors, second.total_weight, second.count)
    assert [p.tobytes() for p in first.pieces()] == [p.tobytes() for p in whole.pieces()]
    assert (first.total_weight, first.count) == (16, 3)


@pytest.mark.parametrize(
    ("value", "weight", "count", "word"),
    [(9 * 64 * 2**31 + 1, 9, 1, "outside"), (0, 10, 1, "weight 10"), (0, 1, 2, "weight 1")],
)
def test_a_sum_no_updates_could_have_is_refused(
    value: int, weight: int, count: int, word: str
) -> None:
    total = ExactSum(MANIFEST, SCALES, w_max=9)
    tensors = {s.name: np.zeros(s.shape, np.int64) for s in MANIFEST.tensors}
    tensors["w"][1, 0] = -value
    with pytest.raises(MessageError, match=word):
        total.add_sum(tensors, weight, count)
    assert total.count == 0
    assert not any(piece.any() for piece in list(total.pieces())[1:])


def test_read_only_and_unaligned_arrays_are_added_as_they_are() -> None:
    manifest = Manifest((TensorSpec("w", (3,), "parameter"),))
    values = np.array([1.0, 2.0, -3.0], np.float32)
    unaligned = np.ndarray((3,), np.float32, buffer=b"x" + values.tobytes(), offset=1)
    assert not unaligned.flags.aligned
    total = ExactSum(manifest, SCALES, w_max=1)
    add(total, {"w": unaligned}, 1)
    assert mean(total, "w").tolist() == [1.0, 2.0, -3.0]


SUM_IN_A_PROCESS = """
import sys, logging
logging.basicConfig(level="INFO", format="%(message)s")
if "without numba" in sys.argv:
    sys.modules["numba"] = None
import numpy as np
from fl_queue.aggregation.exact_sum import ExactSum, warm_up
from fl_queue.aggregation.scales import Scale
from fl_queue.protocol.manifest import Manifest, TensorSpec
warm_up()
manifest = Manifest((TensorSpec("w", (99999,), "parameter"),))
total = ExactSum(manifest, {"parameter": Scale(31, 64.0)}, 9)
rng = np.random.default_rng(3)
for weight in (3, 9):
    values = rng.standard_normal(99999).astype(np.float32)
    total.add_blocks(lambda spec: [values], weight)
from fl_queue.protocol.tensor_layout import body_digest
print(body_digest(total.mean_block("w", 0, 99999).tobytes()), total._totals["w"].sum(), "numba.core" in sys.modules)
"""


def test_without_numba_the_bits_are_the_same() -> None:
    fast, _ = words_of(SUM_IN_A_PROCESS)
    slow, log = words_of(SUM_IN_A_PROCESS, "without numba")
    assert fast[:2] == slow[:2]
    assert (fast[2], slow[2]) == ("True", "False")
    assert "numba cannot be imported" in log


def test_without_a_folder_to_cache_in_the_kernels_are_compiled(tmp_path: Path) -> None:
    # A file in the place of every cache folder: no account can write there, root included.
    package = tmp_path / "fl_queue"
    shutil.copytree(
        Path(fl_queue.__file__).parent, package, ignore=shutil.ignore_patterns("__pyc*")
    )
    (package / "aggregation/__pycache__").write_text("")
    (tmp_path / "no-folder").write_text("")
    nowhere = str(tmp_path / "no-folder")
    found, log = words_of(
        SUM_IN_A_PROCESS,
        cwd=tmp_path,
        PYTHONPATH=str(tmp_path),
        HOME=nowhere,
        XDG_CACHE_HOME=nowhere,
    )
    assert found == words_of(SUM_IN_A_PROCESS)[0]
    assert "compiling at each start" in log
