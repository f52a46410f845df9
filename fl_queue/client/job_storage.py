"""Disk storage of a client's job: room for its update, and the client state that it loads and writes."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping
from typing import Any

from fl_queue.client import client_state, local_update, update_message
from fl_queue.client.assignment import ClientJob, encoding_of, manifest_of
from fl_queue.client.client_state import AcceptedUpdate, ClientStateFolder, StoredClientState
from fl_queue.client.progress import add_event
from fl_queue.common import disk_space
from fl_queue.protocol import identifiers, tensor_layout
from fl_queue.protocol.codecs import codec, error_feedback
from fl_queue.protocol.events import ClientStateMissing
from fl_queue.protocol.manifest import Manifest
from fl_queue.store import keyspace
from fl_queue.strategies.base import Strategy
from fl_queue.strategies.layouts import PERSONAL, PRIVATE, RESIDUAL, client_layouts, update_manifest
from fl_queue.tasks.context import ClientContext

log = logging.getLogger(__name__)

#: More than a header has.
_HEAD_BYTES = 64 * 1024


def check_room(job: ClientJob) -> None:
    """
    Check the free disk space before the model is fetched and trained.

    Without room for the update each attempt would train in vain.

    Raises:
        NoRoom: The model, the update or the client state would not fit.
    """
    manifest = job.base.manifest if job.base is not None else manifest_of(job)
    strategy = job.strategy()
    layouts = _layouts(job, strategy, manifest)
    sent = update_manifest(strategy, manifest)
    nbytes = _HEAD_BYTES + codec.encoded_nbytes(codec.encoding(job.config.update), sent)
    nbytes += client_state.layout(layouts).nbytes if layouts else 0
    what = "the update"
    if job.base is None and not job.cache.has(job.round.fetched):
        nbytes += codec.encoded_nbytes(encoding_of(job), manifest)
        what = "the model and the update"
    disk_space.check(job.site.outbox, nbytes, what)


def load_state(job: ClientJob, strategy: Strategy, manifest: Manifest) -> StoredClientState:
    """The client state of this client's newest accepted update, which the control server names."""
    layouts = _layouts(job, strategy, manifest)
    if not layouts:
        return StoredClientState()
    found = job.store.control.receipts.accepted(job.run, job.who)
    accepted = AcceptedUpdate(*found) if found else None
    backed_up = job.store.control.receipts.accepted(job.run, keyspace.in_backup(job.who))
    stored = _folder(job).load(
        job.round.number,
        accepted,
        client_state.layout(layouts),
        _start_of(layouts),
        # They come from Redis, and name folders here.
        [origin for origin in job.state.restored_from if identifiers.is_run_id(origin)],
        AcceptedUpdate(*backed_up) if backed_up else None,
    )
    since, own = job.state.state_since, strategy.client_state
    stored = client_state.still_counts(stored, accepted, since, layouts, own)
    if stored.is_missing:
        log.warning("run=%s client=%s state %s", job.run, job.who, stored.note)
        event = ClientStateMissing(run=job.run, round=job.round.number, what=stored.note)
        add_event(job, event)
    return stored


def _layouts(job: ClientJob, strategy: Strategy, manifest: Manifest) -> dict[str, Manifest]:
    return client_layouts(strategy, manifest, job.config.update.error_feedback)


def _start_of(layouts: Mapping[str, Manifest]) -> str:
    """Words for the values that a client without a state starts from."""
    own = {PRIVATE: "the private tensors of version 0", PERSONAL: "the round's model"}
    found = [words for name, words in own.items() if name in layouts]
    return " and ".join([*(["zero"] if layouts.keys() - own.keys() else []), *found])


def write_state(
    job: ClientJob,
    strategy: Strategy,
    result: local_update.TrainingResult,
    context: ClientContext,
    residual: Mapping[str, Any],
) -> None:
    """Write the client state that counts once the update is accepted; before the update is in the outbox."""
    layouts = _layouts(job, strategy, result.manifest)
    if not layouts:
        return
    layout = client_state.layout(layouts)
    encoding = codec.encoding(job.config.update)
    digest = tensor_layout.pieces_digest(
        update_message.iter_body(result, encoding, context, residual)
    )
    pieces = _state_pieces(layout, encoding, result, context, residual)
    _folder(job).write(AcceptedUpdate(job.round.number, digest), layout, pieces)


def _folder(job: ClientJob) -> ClientStateFolder:
    return ClientStateFolder(job.site.client_states, job.run, job.who)


def _state_pieces(
    layout: Manifest,
    encoding: str,
    result: local_update.TrainingResult,
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
