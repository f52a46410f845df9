"""
Norm of an update, and the factor that clips it: the same bits on every machine.

The L2 norm is over parameters only, of the values as they were received (decoded, where a codec was
used), never of a header's figures. The square of a float32 is exact in float64. Sums of squares are
formed in blocks of ``BLOCK`` elements of a tensor, counted from its beginning, however it comes in
pieces: the upper half of a block is added to the lower half, elementwise, until one number is left.
Unlike ``numpy.sum``, whose order depends on the width of the machine's registers, an elementwise
addition has one result. The blocks' sums are added exactly and rounded once (``math.fsum``), so their
order makes no difference; the root is rounded once. No Redis here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np

from fl_queue.protocol.arrays import Blocks, Float64s
from fl_queue.protocol.manifest import Manifest
from fl_queue.protocol.tensor_layout import Tensor

#: Elements whose squares are added pairwise; a power of two, 512 KiB of float64.
BLOCK = 65536


def l2_norm(manifest: Manifest, blocks: Blocks) -> float:
    """
    The L2 norm of an update's parameters, over all of them together.

    Args:
        manifest: The update's tensors.
        blocks: Of each tensor its elements, float32, in pieces of any size.

    Returns:
        NaN or infinity when a value is; such an update is refused anyway.
    """
    parameters = (spec for spec in manifest.tensors if spec.kind == "parameter")
    return math.sqrt(math.fsum(part for spec in parameters for part in _squares(blocks(spec))))


def clip_factor(norm: float, most: float) -> float:
    """
    Factor of the parameters of an update of this norm, 1 or less.

    Args:
        most: ``aggregation.clip_norm``, above 0.

    Source:
        Sun et al. 2019, arXiv 1911.07963, section 4 (norm thresholding of updates).
    """
    return most / norm if most < norm < math.inf else 1.0


def _squares(pieces: Iterable[Tensor]) -> Iterator[float]:
    """The sum of squares of each block."""
    block, filled = np.empty(BLOCK, np.float64), 0
    for piece in pieces:
        flat, start = piece.reshape(-1), 0
        while start < flat.size:
            count = min(BLOCK - filled, flat.size - start)
            block[filled : filled + count] = flat[start : start + count]
            filled, start = filled + count, start + count
            if filled == BLOCK:
                yield _sum_of_squares(block)
                filled = 0
    if filled:
        block[filled:] = 0.0
        yield _sum_of_squares(block)


def _sum_of_squares(block: Float64s) -> float:
    """The same of one block, which is overwritten."""
    np.multiply(block, block, out=block)
    half = BLOCK // 2
    while half:
        np.add(block[:half], block[half : 2 * half], out=block[:half])
        half //= 2
    return float(block[0])
