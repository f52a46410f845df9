"""
A trained update as it travels: the header's fields, and the body piece by piece.

One code for a client's job and for ``try-task``, which shows what would leave. No Redis here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fl_queue.protocol import tensor_layout
from fl_queue.protocol.codecs import codec, error_feedback
from fl_queue.protocol.header import Header
from fl_queue.protocol.manifest import Manifest
from fl_queue.protocol.tensor_layout import Bytes

if TYPE_CHECKING:
    from fl_queue.client.local_update import TrainingResult
    from fl_queue.tasks.context import ClientContext


def initial_header(blank: Header, manifest: Manifest, environment: Mapping[str, Any]) -> Header:
    """Header of version 0, but for the digest of its body."""
    return replace(
        blank,
        manifest=manifest.to_json(),
        environment=environment,
        tensors=tensor_layout.entries(manifest),
        body_bytes=manifest.initial_nbytes,
    )


def words_header(blank: Header, layout: Manifest, policy: str) -> Header:
    """
    Header of a site's words, but for the digest of its body.

    Args:
        layout: The vector, as the only tensor of a body.
        policy: Digest of the site's policy, for its receipt.
    """
    return replace(
        blank,
        environment={"policy": policy},
        tensors=tensor_layout.entries(layout),
        body_bytes=layout.nbytes,
    )


def build_header(
    blank: Header,
    made: TrainingResult,
    encoding: str,
    environment: Mapping[str, Any],
    context: ClientContext,
) -> Header:
    """
    Header of an update, but for the digest of its body.

    Args:
        blank: Of the round, without anything trained.
        encoding: The codec, as headers name it.
        environment: What decides the bits of training; what the site held back is added.
    """
    held_back = {"max_examples": context.max_examples} if context.max_examples else {}
    # A short last batch is another one then.
    held_back |= {"min_batch": context.min_batch} if context.min_batch > 1 else {}
    files = {"files": dict(made.files)} if made.files else {}
    return replace(
        blank,
        num_examples=made.num_examples,
        metrics=made.metrics,
        train_metrics=made.train_metrics,
        train_s=made.train_s,
        environment={**environment, **held_back, **files},
        tensors=codec.entries(encoding, made.sent),
        codec=encoding,
        scalars=dict(made.answer.scalars),
        body_bytes=codec.encoded_nbytes(encoding, made.sent),
    )


def iter_body(
    made: TrainingResult, encoding: str, context: ClientContext, residual: Mapping[str, Any]
) -> Iterator[Bytes]:
    """
    An update's body, piece by piece; the same bytes when it is made again.

    Args:
        residual: What the codec left out of the client's accepted updates.
    """
    codec.prepare(encoding, made.sent)
    seed = codec_seed(context)
    for spec, start, values in error_feedback.corrected(
        made.pieces(), residual, made.answer.factor
    ):
        yield codec.encode_piece(encoding, spec, start, values, seed)


def codec_seed(context: ClientContext) -> int:
    """Decides how a codec rounds a client's update of a round."""
    return context.seed_for("codec")
