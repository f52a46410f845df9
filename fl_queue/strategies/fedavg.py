"""
FedAvg: the base model plus the weighted mean of the updates.

Source:
    McMahan et al. 2017, arXiv 1602.05629, Algorithm 1 (server update). Here clients send
    differences to the base, so the mean of the local models is base + mean of the differences.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from fl_queue.blob import Tensor, matching
from fl_queue.exact import ExactSum
from fl_queue.records import Manifest, TensorSpec

#: Elements computed at a time: bounds the float64 intermediates to 1 MiB, whatever the model.
_BLOCK = 65536


class FedAvg:
    """
    ``new = float32(float64(base) + mean)``, elementwise.

    Float buffers get the same, and variances among them (names that end in ``_var``, as
    BatchNorm's ``running_var``) are floored at 0: rounding may bring one just below, and its
    square root would be NaN. Integer buffers: the maximum over the updates.
    """

    def next_model(
        self, manifest: Manifest, base: Mapping[str, Tensor], total: ExactSum
    ) -> Iterator[Tensor]:
        """
        The next model; see ``Strategy.next_model``.

        Raises:
            BlobError: A tensor of ``base`` is not the manifest's.
            ValueError: Nothing was added to ``total``.
        """
        for spec in manifest.tensors:
            if spec.kind == "integer_buffer":
                yield total.maximum(spec.name)
                continue
            old = np.ascontiguousarray(matching(spec, base)).reshape(-1)
            for start in range(0, spec.size, _BLOCK):
                yield _step(spec, old[start : start + _BLOCK], start, total)
            total.release(spec.name)


def _step(spec: TensorSpec, old: Tensor, start: int, total: ExactSum) -> Tensor:
    block = old.astype(np.float64)
    block += total.mean_block(spec.name, start, start + old.size)
    if spec.kind == "float_buffer" and spec.name.endswith("_var"):
        # Not np.maximum: which zero it makes of -0.0 depends on the instruction set.
        block[block <= 0.0] = 0.0
    return block.astype(np.float32)
