"""
The masked updates of an open round as one sum, which another incarnation can go on from.

Beside the words it needs what came with each client's messages: keys, shares and commitments, never a secret. They are
in the progress of the sum's record.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from fl_queue.coordinator.aggregator.secure_intake import SecureIntake
from fl_queue.errors import MessageError
from fl_queue.protocol.manifest import Manifest, TensorSpec
from fl_queue.protocol.tensor_layout import Bytes, Tensor, as_bytes

_WORDS = "words"


class MaskedSum:
    """
    The sum of a secure round as ``SumCheckpoint`` saves and loads it.

    Args:
        intake: The round's messages.
    """

    def __init__(self, intake: SecureIntake) -> None:
        self._intake = intake
        self.scalars: dict[str, Fraction] = {}

    @property
    def count(self) -> int:
        """Updates in it."""
        return self._intake.total.count

    @property
    def total_weight(self) -> int:
        """As many: a masked update has no weight that is known."""
        return self.count

    @property
    def divisor(self) -> int:
        """The same."""
        return self.count

    @property
    def layout(self) -> Manifest:
        """The words of the sum, as one tensor of whole bytes."""
        words = -(-self._intake.total.nbytes // 8)
        return Manifest((TensorSpec(_WORDS, (words,), "integer_buffer"),))

    def pieces(self) -> Iterable[Bytes | Tensor]:
        """The body of the sum."""
        yield from self._intake.total.pieces()
        yield bytes(-self._intake.total.nbytes % 8)

    def add_sum(
        self, tensors: Mapping[str, Tensor], weight: int, count: int, divisor: int | None = None
    ) -> None:
        """Add a saved sum. Raises MessageError: it is of another layout."""
        raw = as_bytes(np.ascontiguousarray(tensors[_WORDS]))
        self._intake.total.add_pieces(raw[: self._intake.total.nbytes], count)

    def add_scalars(self, sums: Mapping[str, Fraction]) -> None:
        """Add nothing: what a client has lost is in the progress."""

    def progress(self) -> dict[str, Any]:
        """What came with the updates in it, as plain values."""
        return self._intake.collected()

    def resume(self, progress: Mapping[str, Any]) -> None:
        """
        Go on from what ``progress`` has returned.

        Raises:
            MessageError: It is something else.
        """
        try:
            self._intake.restore(progress)
        except (KeyError, TypeError, ValueError) as exc:
            raise MessageError(f"not the progress of a secure round: {exc}") from exc
