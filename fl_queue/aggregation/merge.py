"""
One round's updates -> the next model: what the aggregator does, and what ``verify`` does again.

A function of the base, the accepted updates and what the round recorded, in any order. No Redis.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from fl_queue.aggregation import clipping, rebase
from fl_queue.aggregation.exact_sum import ExactSum
from fl_queue.aggregation.scales import Scale
from fl_queue.aggregation.staleness import StalenessWeights
from fl_queue.aggregation.sum_format import SumSettings
from fl_queue.aggregation.update_matrix import UpdateMatrix
from fl_queue.aggregation.weighting import weight_of
from fl_queue.protocol import message, tensor_layout
from fl_queue.protocol.codecs import codec, int8
from fl_queue.protocol.header import Header
from fl_queue.protocol.manifest import Manifest
from fl_queue.protocol.records import LOST
from fl_queue.protocol.tensor_layout import Bytes, Tensor
from fl_queue.strategies import get_strategy
from fl_queue.strategies.base import RoundInfo, State, Strategy
from fl_queue.strategies.layouts import check_scalars, update_manifest


class MergeSettings(SumSettings, Protocol):
    """The fields of ``[aggregation]`` that decide how updates are merged."""

    @property
    def clip_norm(self) -> float:
        """Largest L2 norm of an update; 0: any."""


class RoundSections(Protocol):
    """Sections of a round's config that merging needs; a ``RunConfig`` has it."""

    @property
    def aggregation(self) -> MergeSettings:
        """The section ``aggregation``."""

    @property
    def strategy(self) -> Mapping[str, Any]:
        """Options of the strategy."""

    @property
    def update(self) -> codec.CodecSettings:
        """The section ``update``."""


@dataclass(frozen=True)
class MergedUpdate:
    """
    An update in the sum.

    Args:
        weight: Its integer weight.
        norm: L2 norm of its parameters as they came; None where nothing is clipped.
        clipped: Whether it was scaled down.
        counted: What it counts in the divisor of the mean.
    """

    weight: int
    norm: float | None = None
    clipped: bool = False
    counted: int = 0


class UpdateMerger:
    """
    The updates of one round, merged as they come.

    Args:
        manifest: The model's.
        aggregation: The ``aggregation`` section of the round's config.
        scales: Quantity -> its scale, as the round recorded it.
        w_max: Largest weight an update may have.
        encoding: The codec of the updates.
        strategy: What they have besides; FedAvg unless it is given.
        folder: Where all updates may lie, if the strategy needs them at once; by default the
            machine's for temporary files.
        discount: What staleness does to their weights, in an asynchronous round.
    """

    def __init__(
        self,
        manifest: Manifest,
        aggregation: MergeSettings,
        scales: Mapping[str, Sequence[float]],
        w_max: int,
        encoding: str = "float32",
        strategy: Strategy | None = None,
        folder: Path | None = None,
        discount: StalenessWeights | None = None,
    ) -> None:
        self.manifest = manifest
        self.discount = discount
        self.aggregation = aggregation
        self.encoding = encoding
        self.strategy = strategy or Strategy()
        #: The tensors of an update, and so of the sum.
        self.sent = update_manifest(self.strategy, manifest)
        if encoding == "int8":
            int8.warm_up()
        fixed = {kind: Scale.of(recorded) for kind, recorded in scales.items()}
        #: Clients whose updates a rule has not let into the next model, once that was asked for.
        self.left_out: Sequence[str] = ()
        needs_all = self.strategy.needs_all
        #: The updates' sum; nothing is added where the strategy needs all of them.
        self.total = ExactSum(Manifest(()) if needs_all else self.sent, fixed, w_max)
        self._all = (
            UpdateMatrix(self.sent, fixed, w_max, folder or Path(tempfile.gettempdir()))
            if needs_all
            else None
        )

    @property
    def count(self) -> int:
        """Updates that were added."""
        return self.total.count if self._all is None else self._all.count

    @property
    def begins_anew(self) -> bool:
        """Whether a client in the sum has lost its state, so that the state of every client becomes zero."""
        return self.total.scalars.get(LOST, 0) > 0

    @property
    def layout(self) -> Manifest:
        """The tensors of the sum's body, where there is a sum."""
        return self.total.layout

    @property
    def is_resumable(self) -> bool:
        """True if the sum alone is enough to go on from; otherwise the updates are kept beside it."""
        return self._all is None

    @classmethod
    def of_round(
        cls,
        manifest: Manifest,
        config: RoundSections,
        scales: Mapping[str, Sequence[float]],
        w_max: int,
        folder: Path | None = None,
        discount: Mapping[str, Any] | None = None,
    ) -> UpdateMerger:
        """
        Make the merger of a round that was opened with this config.

        Args:
            discount: As the round recorded it; empty for a synchronous one.
        """
        strategy = get_strategy(config.aggregation.strategy, config.strategy)
        encoding = codec.encoding(config.update)
        found = StalenessWeights.from_dict(discount or {})
        return cls(manifest, config.aggregation, scales, w_max, encoding, strategy, folder, found)

    def check(self, header: Header) -> None:
        """
        Refuse an update whose body, which need not be here yet, has another codec or layout than the run's.

        Raises:
            MessageError: Names the codec, or the first tensor that differs.
        """
        codec.check_tensors(self.encoding, header, self.sent)

    def take(self, header: Header, body: Bytes) -> MergedUpdate:
        """
        Judge one client's update as the aggregator does, and add it.

        Raises:
            MessageError: It would not be accepted; nothing was added.
            CheckpointError: As ``add``.
        """
        self.check(header)
        return self.add(header, body)

    def add(
        self, header: Header, body: Bytes, max_client_examples: int = 0, staleness: int = 0
    ) -> MergedUpdate:
        """
        Add one update that ``check`` let pass.

        Args:
            max_client_examples: Cap on the examples of its client; 0: none.
            staleness: Versions that were made while it was; 0 in a synchronous round.

        Raises:
            MessageError: It is not of the manifest, damaged, or beyond a limit; nothing was added.
            CheckpointError: There is no room on disk for all updates of the round.
        """
        weight = counted = weight_of(self.aggregation, header.num_examples, max_client_examples)
        if self.discount is not None:
            counted = self.discount.full(weight)
            weight = self.discount.discounted(weight, staleness)
        check_scalars(self.strategy, header.scalars)
        message.check_body(header, body)
        blocks = codec.DecodedBlocks(self.encoding, self.sent, body)
        most = self.aggregation.clip_norm
        norm = clipping.l2_norm(self.sent, blocks) if most else None
        factor = 1.0 if norm is None else clipping.clip_factor(norm, most)
        if self._all is None:
            self.total.add_blocks(blocks, weight, header.scalars, factor, counted)
        else:
            self._all.add_blocks(header.client, blocks, weight, factor)
        return replace(self.added(weight, norm), counted=counted)

    def added(self, weight: int, norm: float | None) -> MergedUpdate:
        """Describe an update in the sum, or in one of a group. Args: ``norm``: if there is one."""
        most = self.aggregation.clip_norm
        if norm is None or not most:
            return MergedUpdate(weight, counted=weight)
        return MergedUpdate(weight, norm, clipping.clip_factor(norm, most) < 1.0, weight)

    def next_model(
        self,
        base: Bytes,
        state: State | None = None,
        sinks: Mapping[str, Callable[[Tensor], object]] | None = None,
        facts: RoundInfo | None = None,
        strategy: Strategy | None = None,
        older: Mapping[int, Bytes] | None = None,
        stale: Mapping[int, int] | None = None,
    ) -> Iterator[Tensor]:
        """
        The body of the version that these updates make of ``base``, in blocks; only once.

        Args:
            base: Body of the base version.
            state, sinks, facts: As for ``Strategy.next_model``.
            strategy: The one whose step is taken, when it is an own one.
            older: Bodies of the older versions that stale updates were made from, by version.
            stale: Total weight of those updates, by version; see ``rebase``.

        Raises:
            ValueError: There are too few updates for the strategy.
        """
        views, taken = tensor_layout.views(self.manifest, base), strategy or self.strategy
        facts = replace(facts or RoundInfo(accepted=self.count), begins_anew=self.begins_anew)
        merged = self.total if self._all is None else taken.merged(self._all)
        if stale:
            moved = rebase.shifts(self.manifest, base, older or {}, stale, self.total.divisor)
            merged = rebase.Rebased(merged, moved)
        self.left_out = merged.left_out
        blocks = taken.next_model(self.manifest, views, merged, state, sinks, facts)
        return map(tensor_layout.little_endian, blocks)
