"""Types of arrays that modules hand to each other, and the finest fixed-point step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from fl_queue.protocol.manifest import TensorSpec

#: Of any type.
Tensor = npt.NDArray[Any]
Octets = npt.NDArray[np.uint8]
Int64s = npt.NDArray[np.int64]
Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]
#: A tensor's elements in order, flat, in blocks of any sizes; each call yields the same elements.
Blocks = Callable[[TensorSpec], Iterable[Tensor]]

#: Most fractional bits: the spacing of float32 at 2**-8; a finer step buys little for differences and costs range.
FINEST = 31
