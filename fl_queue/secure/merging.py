"""The sum of a secure round without its masks, merged as the updates of a round in clear would be."""

from __future__ import annotations

from collections.abc import Mapping

from fl_queue.aggregation.merge import UpdateMerger
from fl_queue.protocol.tensor_layout import Tensor
from fl_queue.secure import masks
from fl_queue.secure.graph import Graph
from fl_queue.secure.masks import Secrets
from fl_queue.secure.ring import RingSum, SignedSum


def unmasked(total: RingSum, secrets: Secrets, graph: Graph, context: bytes) -> SignedSum:
    """
    Take the masks off a sum, in place, and read it as signed integers.

    Args:
        total: Of the survivors' masked updates.
        secrets: Of the round, checked.
        graph: The cohort's.
        context: Of the round.

    Raises:
        MessageError: A mask key is of low order.
    """
    masks.apply(secrets.removals(graph, context), *total.words)
    return total.signed()


def merge(signed: SignedSum, count: int, merger: UpdateMerger, base: Mapping[str, Tensor]) -> None:
    """
    Add an unmasked sum to an empty merger.

    Args:
        count: Updates in it.
        base: Tensors of the base version: integer buffers, which do not travel, stay as they are in it.

    Raises:
        MessageError: The sum is out of range; nothing was added.
    """
    kept = {
        spec.name: base[spec.name] for spec in merger.sent.tensors if spec.kind == "integer_buffer"
    }
    merger.total.add_sum({**signed.tensors, **kept}, signed.weight, count)
