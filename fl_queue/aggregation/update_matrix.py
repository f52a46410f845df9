"""
All updates of a round, for rules that need them at once: on disk, read block of coordinates by block.

They lie one after the other, decoded, in one file without a name: memory holds a block of all of them,
never all of them, and when the process dies the disk has its space back. Decoded on disk, and not read
by range from the data server, because an encoded body need not be readable by range, rules look at it
more than once, and Redis serves training clients meanwhile. Values are those of the exact sum: checked
against the same limits, rounded to the same fixed point. No Redis here.
"""

from __future__ import annotations

import math
import os
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from fl_queue.aggregation.exact_sum import first_outside, out_of_range
from fl_queue.aggregation.scales import Scale
from fl_queue.common import files
from fl_queue.errors import CheckpointError, MessageError
from fl_queue.protocol.arrays import Blocks, Float64s
from fl_queue.protocol.manifest import Manifest, TensorSpec
from fl_queue.protocol.tensor_layout import Tensor, as_bytes

#: Elements written at a time.
_PIECE = 65536


class UpdateMatrix:
    """
    The accepted updates of a round, in the order of their clients' ids whatever order they came in.

    Args:
        manifest: The tensors of every update.
        scales: Quantity -> scale, as the round recorded them.
        w_max: Largest weight of an update.
        folder: Where there is room for all of them; made when the first one comes.
    """

    def __init__(
        self, manifest: Manifest, scales: dict[str, Scale], w_max: int, folder: Path
    ) -> None:
        self.manifest = manifest
        self.w_max = w_max
        self._scales, self._folder = scales, folder
        self._where = {spec.name: (spec, offset) for spec, offset in manifest.offsets()}
        self._file: IO[bytes] | None = None
        #: Client -> (which of the bodies in the file is its, weight).
        self._bodies: dict[str, tuple[int, int]] = {}
        #: Where the body of each row is, in the order of ``clients``; made when it is asked for.
        self._places: list[int] | None = None

    @property
    def count(self) -> int:
        """Updates that are here."""
        return len(self._bodies)

    @property
    def clients(self) -> list[str]:
        """Whose they are, sorted: the order of rows in a block."""
        return sorted(self._bodies)

    @property
    def weights(self) -> Float64s:
        """Their weights, in the order of ``clients``."""
        return np.array([self._bodies[client][1] for client in self.clients], np.float64)

    def add_blocks(self, client: str, blocks: Blocks, weight: int, factor: float = 1.0) -> None:
        """
        Take one update, or nothing of it.

        Args:
            client: Whose it is; each has one.
            blocks: As ``ExactSum.add_blocks`` takes them.
            weight: 1 to ``w_max``.
            factor: Its parameters count times this, 0 to 1, as in ``ExactSum.add_blocks``.

        Raises:
            MessageError: The weight is out of range, or a value is not within its limit.
            CheckpointError: The disk is full, or the folder cannot be written.
            ValueError: That client's is here already.
        """
        if client in self._bodies:
            raise ValueError(f"two updates of {client}")
        if not 1 <= weight <= self.w_max:
            raise MessageError(f"weight {weight} is not 1 to {self.w_max}")
        place = len(self._bodies)
        try:
            file = self._open()
            # Over what is left there of an update that was not within its limits.
            file.seek(place * self.manifest.nbytes)
            for spec in self.manifest.tensors:
                for values in blocks(spec):
                    for start in range(0, values.size, _PIECE):
                        piece = self._rounded(spec, values[start : start + _PIECE], factor)
                        file.write(as_bytes(piece))
            file.flush()
        except OSError as exc:
            raise CheckpointError(
                str(self._folder), f"{exc.strerror}; free space there for all updates of a round"
            ) from exc
        self._bodies[client] = (place, weight)
        self._places = None

    def _open(self) -> IO[bytes]:
        if self._file is None:
            files.folder(self._folder)
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115
            weakref.finalize(self, self._file.close)
        return self._file

    def _rounded(self, spec: TensorSpec, values: Tensor, factor: float) -> Tensor:
        if spec.kind == "integer_buffer":
            return values
        scale = self._scales[spec.quantity]
        bad = first_outside(values, scale.limit)
        if bad >= 0:
            raise out_of_range(spec, values[bad], scale)
        if scale.digit:
            return (values + np.float32(0.0)).astype("<f4")  # Nothing of it is rounded away.
        times = math.ldexp(factor if spec.kind == "parameter" else 1.0, scale.s)
        fixed = np.rint(values.astype(np.float64) * times)
        fixed *= math.ldexp(1.0, -scale.s)
        fixed += 0.0  # -0.0 has no fixed point.
        # Exact but for scaled values: these are the bits of a float32 without its last ones.
        return fixed.astype("<f4")

    def block(self, name: str, start: int, stop: int, rows: Sequence[int] | None = None) -> Tensor:
        """
        Elements ``start`` to ``stop`` (C order, flat) of a tensor of several updates.

        Args:
            rows: Which of ``clients``, in this order; None: all.

        Returns:
            One row for each update: float64, or int64 of an integer buffer.
        """
        spec, offset = self._where[name]
        dtype = np.dtype(spec.dtype).newbyteorder("<")
        if self._places is None:
            self._places = [self._bodies[client][0] for client in self.clients]
        chosen = range(self.count) if rows is None else rows
        raw = np.empty((len(chosen), stop - start), dtype)
        first = offset + start * dtype.itemsize
        file = self._open().fileno()
        for values, row in zip(raw, chosen, strict=True):
            at = self._places[row] * self.manifest.nbytes + first
            if os.preadv(file, [as_bytes(values)], at) != values.nbytes:
                raise CheckpointError(str(self._folder), "a gathered update cannot be read")
        return raw.astype(np.int64 if spec.kind == "integer_buffer" else np.float64)

    def spec(self, name: str) -> TensorSpec:
        """A tensor's name, shape and kind."""
        return self._where[name][0]

    def parameters(self) -> Iterator[TensorSpec]:
        """The tensors that are parameters, in the order of the manifest."""
        return (spec for spec in self.manifest.tensors if spec.kind == "parameter")
