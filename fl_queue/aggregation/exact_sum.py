"""
The exact sum: updates merged as fixed-point integers, the same bits in any order and grouping.

An update ``u`` becomes ``q = rint(u * 2**s)`` in int64 (half to even, off by at most 2**-(s+1)).
From there on ``sum(weight * q)`` is integer arithmetic: associative, so partial sums add up exactly
and an update that turns out to be bad halfway is taken out again. ``scales`` fixes ``s`` so that the sum cannot overflow.
Of float buffers nothing is rounded away, see ``digits``.

No float is ever added here, and nothing depends on the machine: the numba kernel uses no fastmath,
and plain numpy (used when numba cannot be imported) gives the same bits. No Redis here.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from fl_queue.aggregation import digits
from fl_queue.aggregation.scales import LIMIT_FIELDS, Scale
from fl_queue.common import jit
from fl_queue.errors import MessageError
from fl_queue.protocol.arrays import Blocks, Float32s, Float64s, Int64s
from fl_queue.protocol.manifest import EXTRA, Manifest, TensorSpec
from fl_queue.protocol.tensor_layout import Tensor, matching

_log = logging.getLogger(__name__)

#: In the reason of an update with a value beyond its limit.
OUTSIDE = "outside ±"
#: Elements the numpy paths work on at a time: 512 KiB of float64, about an L2 cache.
_BLOCK = 65536


class ExactSum:
    """
    The weighted sum of a round's updates; 8 bytes a parameter, whatever the cohort.

    Integer buffers (BatchNorm's ``num_batches_tracked``) are not averaged: the maximum is kept.

    Args:
        manifest: The tensors of every update.
        scales: Quantity -> scale, from ``choose_scales`` for at least as many updates as will be added.
        w_max: Largest weight of an update, as given to ``choose_scales``.
    """

    #: No client's update is left out of a sum; see ``strategies.base.Merged``.
    left_out: tuple[str, ...] = ()

    def __init__(self, manifest: Manifest, scales: Mapping[str, Scale], w_max: int) -> None:
        self.manifest = manifest
        self.scales = dict(scales)
        self.w_max = w_max
        #: The tensors of the sum's body.
        self.layout = sum_manifest(manifest, self.scales)
        self.total_weight = 0
        #: What the total is divided by: more than its weight where updates count for less than they are.
        self.divisor = 0
        self.count = 0
        #: Exact weighted sums of the scalars that came with the updates.
        self.scalars: dict[str, Fraction] = {}
        self._floats = {s.name: s for s in manifest.tensors if s.kind != "integer_buffer"}
        self._integers = {s.name: s for s in manifest.tensors if s.kind == "integer_buffer"}
        self._totals = {name: np.zeros(spec.size, np.int64) for name, spec in self._floats.items()}
        #: Name -> sums of what its scale leaves below, where it has digits.
        self._below = {
            name: np.zeros((digits.count(scale.s, scale.digit), spec.size), np.int64)
            for name, spec in self._floats.items()
            if (scale := self.scales[spec.quantity]).digit
        }
        lowest = np.iinfo(np.int64).min
        self._maxima = {
            name: np.full(spec.shape, lowest, np.int64) for name, spec in self._integers.items()
        }

    def add_blocks(
        self,
        blocks: Blocks,
        weight: int,
        scalars: Mapping[str, float] | None = None,
        factor: float = 1.0,
        counted: int | None = None,
    ) -> None:
        """
        Add one update that comes in blocks, such as ``codec.Blocks`` decodes, or nothing of it.

        Args:
            blocks: Of each tensor of the manifest as many elements as it has, of its dtype; asked
                again for those tensors that have to be taken out again.
            weight: 1 to ``w_max``.
            scalars: Name -> finite number; the same names in each update.
            factor: Its parameters count times this, 0 to 1; before they are rounded to fixed point. The
                limits are for them as they came.
            counted: What it counts in the divisor of means; by default its weight.

        Raises:
            MessageError: The weight is out of range, or a value is not within its limit.
        """
        self._check_weight(weight)
        self._accumulate(blocks, weight, factor)
        for name, maximum in self._maxima.items():
            for values, seen in _beside(blocks(self._integers[name]), maximum.reshape(-1)):
                np.maximum(seen, values, out=seen)
        self.total_weight += weight
        self.divisor += weight if counted is None else counted
        self.count += 1
        self.add_scalars({name: weight * Fraction(v) for name, v in (scalars or {}).items()})

    def add_scalars(self, sums: Mapping[str, Fraction]) -> None:
        """Add weighted sums of scalars, those of updates whose tensors are added elsewhere."""
        for name, value in sums.items():
            self.scalars[name] = self.scalars.get(name, Fraction(0)) + value

    def mean_block(self, name: str, start: int, stop: int) -> Float64s:
        """
        Elements ``start`` to ``stop`` (C order, flat) of the weighted mean of a float tensor.

        ``float64(T) / W * 2**-s``, W the divisor; blocks bound the memory of a caller.

        Raises:
            ValueError: Nothing was added.
        """
        self._check_not_empty()
        block = self._totals[name][start:stop].astype(np.float64)
        # In this order, one rounding each, so that every machine gets the same bits.
        block /= float(self.divisor)
        scale = self.scales[self._floats[name].quantity]
        block *= math.ldexp(1.0, -scale.s)
        if name in self._below:
            below = self._below[name][:, start:stop]
            block += digits.mean(below, self.divisor, scale.s, scale.digit)
        return block

    def scalar_mean(self, name: str) -> float:
        """
        The weighted mean of a scalar, rounded once.

        Raises:
            ValueError: Nothing was added.
        """
        self._check_not_empty()
        return float(self.scalars[name] / self.divisor)

    def maximum(self, name: str) -> Int64s:
        """
        The elementwise maximum of an integer buffer, in its shape.

        Raises:
            ValueError: Nothing was added.
        """
        self._check_not_empty()
        return self._maxima[name].copy()

    def pieces(self) -> Iterator[Int64s]:
        """The sum's own body: int64 arrays in the order of ``layout``, not copied."""
        below = {digits_name(name): array for name, array in self._below.items()}
        whole = {**self._totals, **self._maxima, **below}
        for spec in self.layout.tensors:
            yield whole[spec.name]

    def add_sum(
        self, tensors: Mapping[str, Tensor], weight: int, count: int, counted: int | None = None
    ) -> None:
        """
        Add a partial sum of other updates of the same round, or nothing of it.

        Args:
            tensors: Name -> int64 array, of ``layout``.
            weight: Total weight of the updates in it.
            count: How many they are.
            counted: What they count in the divisor of means; by default their weight.

        Raises:
            MessageError: A tensor is not the manifest's, or a total is larger than ``weight`` allows.
        """
        for spec in self.layout.tensors:
            matching(spec, tensors)
        if not count <= weight <= count * self.w_max:
            raise MessageError(
                f"weight {weight} of {count} updates is not {count} to w_max times that"
            )
        for name, spec in self._floats.items():
            scale = self.scales[spec.quantity]
            most = weight * math.ceil(Fraction(scale.limit) * Fraction(2) ** scale.s)
            if not _is_within(tensors[name], most):
                raise MessageError(f"tensor {name!r} holds a sum outside ±{most}")
            most = weight << max(scale.digit - 1, 0)
            if name in self._below and not _is_within(tensors[digits_name(name)], most):
                raise MessageError(f"tensor {name!r} holds digits outside ±{most}")
        for name, total in self._totals.items():
            total += tensors[name].reshape(-1)
        for name, below in self._below.items():
            below += tensors[digits_name(name)]
        for name, maximum in self._maxima.items():
            np.maximum(maximum, tensors[name], out=maximum)
        self.total_weight += weight
        self.divisor += weight if counted is None else counted
        self.count += count

    def release(self, name: str) -> None:
        """Free a tensor's total once its mean has been used: the sum is twice as large as a model."""
        self._totals.pop(name, None)
        self._below.pop(name, None)

    def _accumulate(self, blocks: Blocks, weight: int, factor: float = 1.0) -> None:
        """Add all float tensors or none: what is outside a limit takes out again what went before."""
        done: list[TensorSpec] = []
        for spec in self._floats.values():
            bad = self._add_tensor(spec, blocks(spec), weight, factor)
            done.append(spec)
            if bad is None:
                continue
            for earlier in done:
                # The last one is taken out as far as it was added: it ends at the same value again.
                self._add_tensor(earlier, blocks(earlier), -weight, factor)
            raise out_of_range(spec, bad, self.scales[spec.quantity])

    def _add_tensor(
        self, spec: TensorSpec, blocks: Iterable[Float32s], weight: int, factor: float
    ) -> np.float32 | None:
        """Add a tensor up to a value outside its limit, which is returned; None: there is none."""
        scale = self.scales[spec.quantity]
        # Times a power of two, which is exact: as if the value were scaled first, and then to fixed point.
        times = math.ldexp(factor if spec.kind == "parameter" else 1.0, scale.s)
        below, start = self._below.get(spec.name), 0
        for values, total in _beside(blocks, self._totals[spec.name]):
            if _kernel()(total, values, weight, times, scale.limit) < values.size:
                bad: np.float32 = values[first_outside(values, scale.limit)]
                return bad
            if below is not None:
                part = below[:, start : start + values.size]
                digits.add(part, values, weight, scale.s, scale.digit)
            start += values.size
        return None

    def _check_weight(self, weight: int) -> None:
        if not 1 <= weight <= self.w_max:
            raise MessageError(f"weight {weight} is not 1 to {self.w_max}")

    def _check_not_empty(self) -> None:
        if self.total_weight == 0:
            raise ValueError("the mean of no updates")


def warm_up() -> None:
    """
    Compile the kernel, or load it from numba's cache (1.0 s and 0.6 s with numba's import).

    The aggregator's worker calls it before it forks, so that no job waits for it; also for what numba
    imports at its first call.
    """
    _kernel()(np.zeros(1, np.int64), np.zeros(1, np.float32), 1, 1.0, 1.0)


def sum_manifest(manifest: Manifest, scales: Mapping[str, Scale] | None = None) -> Manifest:
    """
    The tensors of a sum's body, all int64: those of the manifest, and the digits of those that have some.

    Args:
        scales: The round's.
    """
    tensors = [TensorSpec(spec.name, spec.shape, "integer_buffer") for spec in manifest.tensors]
    for spec in manifest.tensors:
        scale = (scales or {}).get(spec.quantity)
        if scale is not None and scale.digit:
            shape = (digits.count(scale.s, scale.digit), spec.size)
            tensors.append(TensorSpec(digits_name(spec.name), shape, "integer_buffer"))
    return Manifest(tuple(sorted(tensors, key=lambda spec: spec.name)))


def digits_name(name: str) -> str:
    """Name in a sum's layout of the digits of a tensor."""
    return f"{EXTRA}digits/{name}"


def _is_within(values: Tensor, most: int) -> bool:
    return not values.size or (-most <= int(values.min()) and int(values.max()) <= most)


def _beside(blocks: Iterable[Tensor], total: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Each block and the part of ``total`` it belongs to; cut off where that ends."""
    start = 0
    for values in blocks:
        part = total[start : start + values.size]
        # The kernels do not check bounds.
        yield values[: part.size], part
        start += part.size


def out_of_range(spec: TensorSpec, value: np.float32, scale: Scale) -> MessageError:
    """The error for a value of an update that is beyond its limit, or no number."""
    field = LIMIT_FIELDS.get(spec.kind, "the limit of its strategy")
    return MessageError(f"tensor {spec.name!r} holds {value!s}, {OUTSIDE}{scale.limit} ({field})")


def first_outside(values: Float32s, limit: float) -> int:
    """Index of the first value that is NaN or larger than ``limit`` in magnitude; -1 if none."""
    for start in range(0, values.size, _BLOCK):
        block = np.abs(values[start : start + _BLOCK].astype(np.float64))
        outside = np.flatnonzero(~(block <= limit))
        if outside.size:
            return start + int(outside[0])
    return -1


#: ``total[:n] += weight * int64(rint(float64(values) * factor))``, block by block until one holds a
#: value that is NaN or larger in magnitude than the limit; returns how many elements were added.
_Kernel = Callable[[Int64s, Float32s, int, float, float], int]


@functools.cache
def _kernel() -> _Kernel:
    try:
        return _numba_kernel()
    except ImportError as exc:
        _log.warning("numba cannot be imported (%s): merging with numpy, at a third the speed", exc)
        return _add_numpy


def _numba_kernel() -> _Kernel:
    # Views of an element are read-only and, after a header of any length, unaligned. Arrays
    # that are neither fit this signature too, so one compilation serves all.
    values = "Array(float32, 1, 'C', readonly=True, aligned=False)"
    signature = f"int64(int64[::1], {values}, int64, float64, float64)"
    return jit.compiled({_add_loop: signature})[0]


def _add_loop(total: Any, values: Any, weight: Any, factor: Any, limit: Any) -> Any:
    for start in range(0, values.size, 16384):
        # Slices, so that the inner loops have no bounds of their own and are vectorised.
        sums, block = total[start : start + 16384], values[start : start + 16384]
        good = True
        for i in range(block.size):
            good &= abs(np.float64(block[i])) <= limit
        if not good:
            return start
        # The block is in the cache now: looking at it first has cost next to nothing.
        for i in range(block.size):
            sums[i] += weight * np.int64(np.rint(np.float64(block[i]) * factor))
    return values.size


def _add_numpy(total: Int64s, values: Float32s, weight: int, factor: float, limit: float) -> int:
    for start in range(0, values.size, _BLOCK):
        block = values[start : start + _BLOCK].astype(np.float64)
        if not (np.abs(block) <= limit).all():
            return start
        block *= factor
        np.rint(block, out=block)
        total[start : start + _BLOCK] += block.astype(np.int64) * weight
    return values.size
