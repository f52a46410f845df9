"""
One round's updates -> the next model: what the aggregator does, and what ``verify`` does again.

A function of the base, the accepted updates and what the round recorded, in any order. No Redis.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fl_queue import blob, codec, int8
from fl_queue.blob import Bytes, Tensor
from fl_queue.exact import ExactSum, Scale
from fl_queue.header import Header
from fl_queue.records import Manifest
from fl_queue.strategies import get_strategy, weight_of


class Merge:
    """
    Args:
        manifest: The model's.
        aggregation: The ``aggregation`` section of the round's config.
        scales: Quantity -> (s, limit), as the round recorded them.
        w_max: Largest weight an update may have.
        encoding: The codec of the updates.
    """

    def __init__(
        self,
        manifest: Manifest,
        aggregation: Mapping[str, Any],
        scales: Mapping[str, Sequence[float]],
        w_max: int,
        encoding: str = "float32",
    ) -> None:
        self.manifest = manifest
        self.aggregation = aggregation
        self.encoding = encoding
        if encoding == "int8":
            int8.warm_up()
        fixed: dict[Any, Scale] = {
            kind: Scale(int(s), limit) for kind, (s, limit) in scales.items()
        }
        self.total = ExactSum(manifest, fixed, w_max)

    def check(self, header: Header) -> None:
        """
        Whether an update's body, which need not be here yet, has the codec and layout it must have.

        Raises:
            BlobError: Names the codec, or the first tensor that differs.
        """
        codec.check_tensors(self.encoding, header, self.manifest)

    def add(self, header: Header, body: Bytes) -> int:
        """
        Add one update that ``check`` let pass to the exact sum; returns its weight.

        Raises:
            BlobError: It is not of the manifest, damaged, or beyond a limit; the sum is as it was.
        """
        weight = weight_of(self.aggregation, header.num_examples)
        blob.check_body(header, body)
        self.total.add_blocks(codec.Blocks(self.encoding, self.manifest, body), weight)
        return weight

    def next_model(self, base: Bytes) -> Iterator[Tensor]:
        """The body of the version that these updates make of ``base``, in blocks; only once."""
        strategy = get_strategy(self.aggregation["strategy"])
        blocks = strategy.next_model(self.manifest, blob.views(self.manifest, base), self.total)
        return map(blob.little_endian, blocks)
