"""
Error feedback: what a lossy codec left out of a client's update is added to its next one.

    v = update + e        what the client would like to send
    e <- v - decode(encode(v))        once the update was accepted

in float32, element by element, for parameters; buffers travel as they are. Where a strategy has updates sent
times a factor of their round (q-FedAvg, FedNova), ``e`` is kept without it: ``v = update + factor e``. ``e`` is zero at first and
lies with what the client keeps (``clientstate``): it advances only with an update that was accepted, so a
round that was retried, came late or was abandoned adds nothing twice and loses nothing. No Redis here.

Source:
    Stich et al. 2018, arXiv 1809.07599, Algorithm 1; Karimireddy et al. 2019, arXiv 1901.09847.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from fl_queue.protocol.codecs import codec
from fl_queue.protocol.manifest import TensorSpec
from fl_queue.protocol.tensor_layout import Bytes, Tensor

#: A tensor of the update, index of its first element here, and a flat block of elements.
Piece = tuple[TensorSpec, int, Tensor]


def corrected(
    pieces: Iterable[Piece], residual: Mapping[str, Tensor], factor: float = 1.0
) -> Iterator[Piece]:
    """
    An update with what is owed from before.

    Args:
        pieces: The update's, in order.
        residual: Parameter -> ``e``, in its shape; one that is not there is zero.
        factor: Of the update's parameters.
    """
    for spec, start, values in pieces:
        owed = residual.get(spec.name) if spec.kind == "parameter" else None
        if owed is None:
            yield spec, start, values
        else:
            part = owed.reshape(-1)[start : start + values.size]
            yield spec, start, values + _times(part, factor)


def next_residual(
    encoding: str, pieces: Iterable[Piece], seed: int, factor: float = 1.0
) -> Iterator[Tensor]:
    """
    The next ``e`` of the parameters, in order, in the same blocks.

    Args:
        encoding: The codec.
        pieces: What ``corrected`` made.
        seed: That of the update's encoding.
        factor: As for ``corrected``.
    """
    for spec, start, values in pieces:
        if spec.kind == "parameter":
            encoded = codec.encode_piece(encoding, spec, start, values, seed)
            left = values - _decoded(encoding, spec, encoded, values.size)
            # Of an update that counts nothing, nothing is owed.
            yield _times(left, 1.0 / factor if factor else 0.0)


def _times(values: Tensor, factor: float) -> Tensor:
    return values if factor == 1.0 else (values.astype(np.float64) * factor).astype("<f4")


def _decoded(encoding: str, spec: TensorSpec, encoded: Bytes, size: int) -> Tensor:
    """A piece as it will be understood: alone it is laid out as a tensor of that size."""
    out = np.empty(size, np.float32)
    piece = TensorSpec(spec.name, (size,), spec.kind)
    codec.decode_tensor(encoding, piece, encoded, out)
    return out
