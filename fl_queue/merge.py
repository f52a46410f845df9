"""
One round's updates -> the next model: what the aggregator does, and what ``verify`` does again.

A function of the base, the accepted updates and what the round recorded, in any order. No Redis.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fl_queue import blob
from fl_queue.blob import Bytes, Header, Tensor
from fl_queue.exact import ExactSum, Scale
from fl_queue.records import Manifest
from fl_queue.strategies import get_strategy, weight_of


class Merge:
    """
    Args:
        manifest: The model's.
        aggregation: The ``aggregation`` section of the round's config.
        scales: Quantity -> (s, limit), as the round recorded them.
        w_max: Largest weight an update may have.
    """

    def __init__(
        self,
        manifest: Manifest,
        aggregation: Mapping[str, Any],
        scales: Mapping[str, Sequence[float]],
        w_max: int,
    ) -> None:
        self.manifest = manifest
        self.aggregation = aggregation
        fixed: dict[Any, Scale] = {
            kind: Scale(int(s), limit) for kind, (s, limit) in scales.items()
        }
        self.total = ExactSum(manifest, fixed, w_max)

    def add(self, header: Header, body: Bytes) -> int:
        """
        Add one update to the exact sum; returns its weight.

        Raises:
            BlobError: It is not of the manifest, damaged, or beyond a limit; the sum is as it was.
        """
        weight = weight_of(self.aggregation, header.num_examples)
        blob.check_body(header, body)
        self.total.add(blob.views(self.manifest, body), weight)
        return weight

    def next_model(self, base: Bytes) -> Iterator[Tensor]:
        """The body of the version that these updates make of ``base``, in blocks; only once."""
        strategy = get_strategy(self.aggregation["strategy"])
        blocks = strategy.next_model(self.manifest, blob.views(self.manifest, base), self.total)
        return map(blob.little_endian, blocks)
