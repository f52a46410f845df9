"""
Accepted updates -> next model: the strategies, and the weight of an update in the mean.

A strategy sees the exact sum of the round and computes elementwise, in float64, in a fixed order,
so that machines agree on every bit. No Redis here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from fl_queue.blob import Tensor
from fl_queue.errors import BlobError, ConfigError
from fl_queue.exact import ExactSum
from fl_queue.records import Manifest
from fl_queue.strategies.fedavg import FedAvg


class Strategy(Protocol):
    """How the sum of a round's accepted updates becomes the next model."""

    def next_model(
        self, manifest: Manifest, base: Mapping[str, Tensor], total: ExactSum
    ) -> Iterator[Tensor]:
        """
        The next model's body, in blocks: a large model is never in memory for it.

        Args:
            manifest: The run's shared tensors.
            base: The model the updates were trained from; not modified.
            total: Sum of the accepted updates, one at least; a tensor's total is released once it
                has been used.

        Yields:
            Arrays of the tensors' elements in the manifest's order, each of at most one tensor:
            float32, or int64 for integer buffers.
        """


_STRATEGIES: dict[str, type[Strategy]] = {"fedavg": FedAvg}


def get_strategy(name: str) -> Strategy:
    """
    The strategy that ``aggregation.strategy`` names.

    Raises:
        ConfigError: There is none of that name.
    """
    if name not in _STRATEGIES:
        known = ", ".join(sorted(_STRATEGIES))
        raise ConfigError("aggregation.strategy", f"{name!r} is not one of: {known}")
    return _STRATEGIES[name]()


def weight_of(aggregation: Mapping[str, Any], num_examples: int) -> int:
    """
    The integer weight of an update in the mean, 1 to ``largest_weight``.

    Weighting by examples estimates the mean over examples, and gives a client that claims many of
    them much influence; ``capped`` bounds that; ``uniform`` estimates the mean over clients.

    Args:
        aggregation: The config's ``[aggregation]`` section.
        num_examples: Examples the client says it used.

    Raises:
        BlobError: The claim is not 1 to ``aggregation.max_examples``, whatever the weighting.

    Source:
        McMahan et al. 2017, arXiv 1602.05629, Algorithm 1 (weights n_k / n).
    """
    most = aggregation["max_examples"]
    if not 1 <= num_examples <= most:
        raise BlobError(f"num_examples is {num_examples}, not 1 to aggregation.max_examples {most}")
    return _weight(aggregation, num_examples)


def largest_weight(aggregation: Mapping[str, Any]) -> int:
    """The largest weight an update may have: ``w_max`` of the exact sum."""
    return _weight(aggregation, aggregation["max_examples"])


def _weight(aggregation: Mapping[str, Any], num_examples: int) -> int:
    if aggregation["weighting"] == "uniform":
        return 1
    if aggregation["weighting"] == "capped":
        return min(num_examples, int(aggregation["cap"]))
    return num_examples
