"""
Float buffers of updates that were made from older versions, merged as values. No Redis here.

A client sends what it has made of a tensor as the difference to the version that it began with. For
parameters that is a step, which is taken from the newest version. A running statistic is no step: local
training forgets the old value, so the difference to it, added to a newer one, adds the same correction
once more for each version that was made meanwhile. With the buffers ``b_i`` of its own base the update
reports the value that it came to, ``d_i + b_i``, and the version moves towards these values:

    new = v + sum w_i (d_i + b_i - v) / sum n_i = v + sum w_i d_i / sum n_i + sum W_b (b - v) / sum n_i

The first sum is the round's exact sum; the second needs the total weight ``W_b`` of each base alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fl_queue.aggregation.staleness import AS_VALUES
from fl_queue.protocol import tensor_layout
from fl_queue.protocol.arrays import Float64s, Int64s
from fl_queue.protocol.manifest import Manifest
from fl_queue.protocol.records import RoundRecord
from fl_queue.protocol.tensor_layout import Bytes
from fl_queue.strategies.base import Merged

Shifts = Mapping[str, NDArray[np.float64]]


class Rebased:
    """
    The updates of a round as one, their float buffers as values.

    Args:
        merged: The same, as differences to the versions they were made from.
        shifts: Of ``shifts``.
    """

    def __init__(self, merged: Merged, shifts: Shifts) -> None:
        self._merged, self._shifts = merged, shifts
        self.manifest, self.count = merged.manifest, merged.count

    @property
    def left_out(self) -> Sequence[str]:
        """As of the updates themselves."""
        return self._merged.left_out

    def mean_block(self, name: str, start: int, stop: int) -> Float64s:
        """Elements of a float tensor's mean, of a buffer with its shift."""
        block = self._merged.mean_block(name, start, stop)
        if name in self._shifts:
            block += self._shifts[name][start:stop]
        return block

    def scalar_mean(self, name: str) -> float:
        """As of the updates themselves."""
        return self._merged.scalar_mean(name)

    def maximum(self, name: str) -> Int64s:
        """As of the updates themselves."""
        return self._merged.maximum(name)

    def release(self, name: str) -> None:
        """As of the updates themselves."""
        self._merged.release(name)


def stale_weights(record: RoundRecord, manifest: Manifest) -> dict[int, int]:
    """
    Older version -> total weight of the accepted updates that were made from it.

    Empty where no float buffer travels, and of a round that an earlier version of fl-queue has opened.
    """
    found: dict[int, int] = {}
    has_buffers = any(spec.kind == "float_buffer" for spec in manifest.shared().tensors)
    if not has_buffers or record.discount.get("buffers") != AS_VALUES:
        return found
    for client, staleness in sorted(record.staleness.items()):
        if staleness > 0:
            version = record.base_version - staleness
            found[version] = found.get(version, 0) + record.weights[client]
    return found


def shifts(
    manifest: Manifest,
    base: Bytes,
    older: Mapping[int, Bytes],
    weights: Mapping[int, int],
    divisor: int,
) -> Shifts:
    """
    Name of each float buffer -> ``sum W_b (b - v) / divisor``, flat, the same bits on every machine.

    Args:
        manifest: The model's.
        base: Body of the version that the round begins with, ``v``.
        older: Older version -> its body, ``b``.
        weights: Older version -> ``W_b``.
        divisor: Of the mean.
    """
    newest = tensor_layout.views(manifest, base)
    past = {version: tensor_layout.views(manifest, older[version]) for version in sorted(weights)}
    found: dict[str, NDArray[np.float64]] = {}
    for spec in manifest.shared().tensors:
        if spec.kind != "float_buffer":
            continue
        here = newest[spec.name].reshape(-1).astype(np.float64)
        total = np.zeros_like(here)
        for version, views in past.items():
            there = views[spec.name].reshape(-1).astype(np.float64)
            # Two equal infinities, of a mask, have no difference.
            with np.errstate(invalid="ignore"):
                moved = np.where(there == here, 0.0, there - here)
            total += float(weights[version]) * moved
        found[spec.name] = total / float(divisor)
    return found
