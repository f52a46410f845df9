"""Whole updates, partial sums and whole means of ``ExactSum``, whose own methods take and give blocks."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fl_queue.aggregation.exact_sum import ExactSum
from fl_queue.protocol import tensor_layout
from fl_queue.protocol.arrays import Blocks, Float64s
from fl_queue.protocol.manifest import Manifest
from fl_queue.protocol.tensor_layout import Tensor, matching


def whole(manifest: Manifest, tensors: Mapping[str, Tensor]) -> Blocks:
    """Tensors of a manifest as one block each; a ``MessageError`` if one is not the manifest's."""
    # A view of a body is contiguous and is not copied.
    flat = {
        spec.name: np.ascontiguousarray(matching(spec, tensors)).reshape(-1)
        for spec in manifest.tensors
    }
    return lambda spec: [flat[spec.name]]


def add(total: ExactSum, tensors: Mapping[str, Tensor], weight: int) -> None:
    """Add one update that is there whole."""
    total.add_blocks(whole(total.manifest, tensors), weight)


def merge(total: ExactSum, other: ExactSum) -> None:
    """Add a partial sum of other updates of the same round, as an aggregator that resumes does."""
    body = b"".join(piece.tobytes() for piece in other.pieces())
    tensors = tensor_layout.views(other.layout, body)
    total.add_sum(tensors, other.total_weight, other.count, other.divisor)
    total.add_scalars(other.scalars)


def mean(total: ExactSum, name: str) -> Float64s:
    """The weighted mean of a float tensor, in its shape."""
    spec = next(spec for spec in total.manifest.tensors if spec.name == name)
    return total.mean_block(name, 0, spec.size).reshape(spec.shape)
