"""
The exact sum: updates merged as fixed-point integers, the same bits in any order and grouping.

An update ``u`` becomes ``q = rint(u * 2**s)`` in int64 (half to even, off by at most 2**-(s+1)).
From there on ``sum(weight * q)`` is integer arithmetic: associative, so partial sums merge exactly
and an update can be taken out again. ``choose_scales`` fixes ``s`` so that the sum cannot overflow.

No float is ever added here, and nothing depends on the machine: the numba kernels use no fastmath,
and plain numpy (used when numba cannot be imported) gives the same bits. No Redis here.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fl_queue.blob import Tensor, matching
from fl_queue.errors import BlobError, ConfigError
from fl_queue.records import Kind, Manifest, TensorSpec

Int64s = npt.NDArray[np.int64]
Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]

_log = logging.getLogger(__name__)

#: The spacing of float32 at 2**-8; a finer step buys little for differences and costs range.
_FINEST = 31
_COARSEST = 8
#: Elements the numpy paths work on at a time: 512 KiB of float64, about an L2 cache.
_BLOCK = 65536
_LIMIT_FIELDS: dict[str, str] = {
    "parameter": "aggregation.limit",
    "float_buffer": "aggregation.buffer_limit",
}


class Scale(NamedTuple):
    """
    The fixed-point format of one kind of tensor in one round; recorded with the round.

    Args:
        s: Fractional bits: the resolution is 2**-s.
        limit: Largest magnitude an update may have.
    """

    s: int
    limit: float


def choose_scales(cohort: int, w_max: int, limits: Mapping[Kind, float]) -> dict[str, Scale]:
    """
    The finest scales under which no sum of a round can overflow.

    Args:
        cohort: Updates the round may accept, 1 or more.
        w_max: Largest weight of one of them, 1 or more.
        limits: ``parameter`` and ``float_buffer`` -> largest magnitude, finite and above 0.

    Returns:
        Kind -> scale with the largest s <= 31 for which
        ``cohort * w_max * ceil(limit * 2**s) < 2**63`` (exact; the ceiling because rint may round
        a value at the limit up).

    Raises:
        ConfigError: s would be below 8, too coarse to train with.
    """
    return {kind: _choose_scale(cohort, w_max, kind, limit) for kind, limit in limits.items()}


def _choose_scale(cohort: int, w_max: int, kind: Kind, limit: float) -> Scale:
    for s in range(_FINEST, _COARSEST - 1, -1):
        if cohort * w_max * math.ceil(Fraction(limit) * 2**s) < 2**63:
            return Scale(s, limit)
    raise ConfigError(
        _LIMIT_FIELDS[kind],
        f"{limit} leaves no room for the sum of {cohort} updates of weight up to {w_max}; lower it,"
        " or the weights (aggregation.max_examples, or weighting = capped)",
    )


class ExactSum:
    """
    The weighted sum of a round's updates; 8 bytes a float element, whatever the cohort.

    Integer buffers (BatchNorm's ``num_batches_tracked``) are not averaged: the maximum is kept.

    Args:
        manifest: The tensors of every update.
        scales: Kind -> scale, from ``choose_scales`` for at least as many updates as will be added.
        w_max: Largest weight of an update, as given to ``choose_scales``.
    """

    def __init__(self, manifest: Manifest, scales: Mapping[str, Scale], w_max: int) -> None:
        self.manifest = manifest
        self.scales = dict(scales)
        self.w_max = w_max
        self.total_weight = 0
        self.count = 0
        self._floats = {s.name: s for s in manifest.tensors if s.kind != "integer_buffer"}
        self._integers = {s.name: s for s in manifest.tensors if s.kind == "integer_buffer"}
        self._totals = {name: np.zeros(spec.size, np.int64) for name, spec in self._floats.items()}
        lowest = np.iinfo(np.int64).min
        self._maxima = {
            name: np.full(spec.shape, lowest, np.int64) for name, spec in self._integers.items()
        }

    def check(self, tensors: Mapping[str, Tensor]) -> None:
        """
        Whether an update may be added; ``add`` asks it of the whole update before it adds any.

        Args:
            tensors: Name -> array, such as ``blob.views`` gives; not modified.

        Raises:
            BlobError: Names the tensor, the value (NaN and Inf included) and the limit.
        """
        within = _kernels().within
        for spec in self._integers.values():
            matching(spec, tensors)
        for spec in self._floats.values():
            values = _flat(spec, tensors)
            limit = self.scales[spec.kind].limit
            if not within(values, limit):
                value = values[_first_outside(values, limit)]
                raise BlobError(
                    f"tensor {spec.name!r} holds {value!s}, outside ±{limit}"
                    f" ({_LIMIT_FIELDS[spec.kind]})"
                )

    def add(self, tensors: Mapping[str, Tensor], weight: int) -> None:
        """
        Add one update, or nothing of it.

        Args:
            tensors: Name -> float32 difference or int64 value; not modified.
            weight: 1 to ``w_max``.

        Raises:
            BlobError: The weight or a value is out of range, or a tensor is not the manifest's.
        """
        self._check_weight(weight)
        self.check(tensors)
        self._accumulate(tensors, weight)
        for name, maximum in self._maxima.items():
            np.maximum(maximum, tensors[name], out=maximum)
        self.total_weight += weight
        self.count += 1

    def subtract(self, tensors: Mapping[str, Tensor], weight: int) -> None:
        """
        Take an update out again that was added with this weight; the bits are as if it never was.

        Raises:
            BlobError: As ``add``.
            ValueError: The manifest has integer buffers: a maximum cannot be taken back, so the
                sum has to be built anew.
        """
        if self._integers:
            raise ValueError(f"the maximum of {next(iter(self._integers))!r} cannot be taken back")
        self._check_weight(weight)
        self.check(tensors)
        self._accumulate(tensors, -weight)
        self.total_weight -= weight
        self.count -= 1

    def merge(self, other: ExactSum) -> None:
        """
        Add a partial sum of other updates of the same round; ``other`` is not modified.

        Raises:
            ValueError: It has another manifest, other scales or another ``w_max``.
        """
        mine = (self.manifest, self.scales, self.w_max)
        if mine != (other.manifest, other.scales, other.w_max):
            raise ValueError("the partial sums are of different rounds")
        for name, total in self._totals.items():
            total += other._totals[name]
        for name, maximum in self._maxima.items():
            np.maximum(maximum, other._maxima[name], out=maximum)
        self.total_weight += other.total_weight
        self.count += other.count

    def mean(self, name: str) -> Float64s:
        """
        The weighted mean of a float tensor, in its shape: ``float64(T) / W * 2**-s``.

        Raises:
            ValueError: Nothing was added.
        """
        spec = self._floats[name]
        return self.mean_block(name, 0, spec.size).reshape(spec.shape)

    def mean_block(self, name: str, start: int, stop: int) -> Float64s:
        """
        Elements ``start`` to ``stop`` (C order, flat) of ``mean``: bounds the memory of a caller.

        Raises:
            ValueError: Nothing was added.
        """
        self._check_not_empty()
        block = self._totals[name][start:stop].astype(np.float64)
        # In this order, one rounding each, so that every machine gets the same bits.
        block /= float(self.total_weight)
        block *= math.ldexp(1.0, -self.scales[self._floats[name].kind].s)
        return block

    def maximum(self, name: str) -> Int64s:
        """
        The elementwise maximum of an integer buffer, in its shape.

        Raises:
            ValueError: Nothing was added.
        """
        self._check_not_empty()
        return self._maxima[name].copy()

    def _accumulate(self, tensors: Mapping[str, Tensor], weight: int) -> None:
        add = _kernels().add
        for spec in self._floats.values():
            factor = math.ldexp(1.0, self.scales[spec.kind].s)
            add(self._totals[spec.name], _flat(spec, tensors), weight, factor)

    def _check_weight(self, weight: int) -> None:
        if not 1 <= weight <= self.w_max:
            raise BlobError(f"weight {weight} is not 1 to {self.w_max}")

    def _check_not_empty(self) -> None:
        if self.total_weight == 0:
            raise ValueError("the mean of no updates")


def warm_up() -> None:
    """
    Compile the kernels, or load them from numba's cache (1.0 s and 0.6 s with numba's import).

    The aggregator's worker calls it before it forks, so that no job waits for it.
    """
    _kernels()


def _flat(spec: TensorSpec, tensors: Mapping[str, Tensor]) -> Float32s:
    # The kernels do not check bounds, so shape and dtype are checked each time; a view of a body
    # is contiguous and is not copied.
    return np.ascontiguousarray(matching(spec, tensors)).reshape(-1)


def _first_outside(values: Float32s, limit: float) -> int:
    """Index of the first value that is NaN or larger than ``limit`` in magnitude; -1 if none."""
    for start in range(0, values.size, _BLOCK):
        block = np.abs(values[start : start + _BLOCK].astype(np.float64))
        outside = np.flatnonzero(~(block <= limit))
        if outside.size:
            return start + int(outside[0])
    return -1


class _Kernels(NamedTuple):
    """
    The two inner loops, over flat arrays; limit and factor are float64.

    Args:
        add: ``total += weight * int64(rint(float64(values) * factor))``.
        within: Whether every ``abs(value) <= limit`` (false for NaN).
    """

    add: Callable[[Int64s, Float32s, int, float], None]
    within: Callable[[Float32s, float], bool]


@functools.cache
def _kernels() -> _Kernels:
    try:
        return _numba_kernels()
    except ImportError as exc:
        _log.warning("numba cannot be imported (%s): merging with numpy, at half the speed", exc)
        return _Kernels(_add_numpy, _within_numpy)


def _numba_kernels() -> _Kernels:
    # Imported here: it takes half a second, and the CLI needs choose_scales only.
    import numba
    from numba import types

    # Views of an element are read-only and, after a header of any length, unaligned. Arrays
    # that are neither fit this signature too, so one compilation serves all.
    values = types.Array(types.float32, 1, "C", readonly=True, aligned=False)
    add = types.void(types.int64[::1], values, types.int64, types.float64)
    within = types.boolean(values, types.float64)

    def compile_all(cache: bool) -> _Kernels:
        return _Kernels(
            numba.njit(add, nogil=True, cache=cache)(_add_loop),
            numba.njit(within, nogil=True, cache=cache)(_within_loop),
        )

    try:
        return compile_all(cache=True)
    except (RuntimeError, OSError) as exc:  # no folder to cache in, or its disk is full
        _log.info("numba cannot cache its kernels (%s): compiling at each start", exc)
        return compile_all(cache=False)


def _add_loop(total: Any, values: Any, weight: Any, factor: Any) -> None:
    for i in range(total.size):
        total[i] += weight * np.int64(np.rint(np.float64(values[i]) * factor))


def _within_loop(values: Any, limit: Any) -> Any:
    # No early exit: it would keep the loop from being vectorised, and good updates are the rule.
    good = True
    for i in range(values.size):
        good &= abs(np.float64(values[i])) <= limit
    return good


def _add_numpy(total: Int64s, values: Float32s, weight: int, factor: float) -> None:
    for start in range(0, total.size, _BLOCK):
        block = values[start : start + _BLOCK].astype(np.float64)
        block *= factor
        np.rint(block, out=block)
        total[start : start + _BLOCK] += block.astype(np.int64) * weight


def _within_numpy(values: Float32s, limit: float) -> bool:
    return _first_outside(values, limit) < 0
