"""Write the client state that counts once an update is accepted, before the update. Imports torch; no Redis here."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from fl_queue.client import client_state, update_message
from fl_queue.client.client_state import AcceptedUpdate, ClientStateFolder
from fl_queue.client.local_update import ClientStrategy, TrainingResult
from fl_queue.config.client_layouts import layouts_of
from fl_queue.config.run_config import RunConfig
from fl_queue.protocol import tensor_layout
from fl_queue.protocol.codecs import codec, error_feedback
from fl_queue.protocol.manifest import Manifest
from fl_queue.strategies.layouts import RESIDUAL
from fl_queue.tasks.context import ClientContext


def write_state(
    folder: ClientStateFolder,
    config: RunConfig,
    plan: ClientStrategy,
    result: TrainingResult,
    context: ClientContext,
) -> None:
    """
    Write what a client keeps of a training; nothing where its run's clients keep nothing.

    Raises:
        LocalStorageError: It cannot be written (disk full, permissions).
    """
    layouts = layouts_of(config, plan.strategy, result.manifest)
    if not layouts:
        return
    layout, residual = client_state.layout(layouts), plan.kept.get(RESIDUAL, {})
    encoding = codec.encoding(config.update)
    digest = tensor_layout.pieces_digest(
        update_message.iter_body(result, encoding, context, residual)
    )
    pieces = _state_pieces(layout, encoding, result, context, residual)
    folder.write(AcceptedUpdate(context.round, digest), layout, pieces)


def _state_pieces(
    layout: Manifest,
    encoding: str,
    result: TrainingResult,
    context: ClientContext,
    residual: Mapping[str, Any],
) -> Iterator[Any]:
    """The states of a layout, one after the other."""
    for state, specs in itertools.groupby(layout.tensors, lambda spec: spec.name.partition("/")[0]):
        if state == RESIDUAL:
            factor, seed = result.answer.factor, update_message.codec_seed(context)
            pieces = error_feedback.corrected(result.pieces(), residual, factor)
            yield from error_feedback.next_residual(encoding, pieces, seed, factor)
        else:
            for spec in specs:
                yield tensor_layout.little_endian(result.kept(state, spec.name.partition("/")[2]))
