"""
What a client keeps on its disk: room for its update, and what it has from one round to the next.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping
from typing import Any

from fl_queue.client import client_state, local_update, update_message
from fl_queue.client.assignment import ClientJob, encoding_of, manifest_of
from fl_queue.client.client_state import AcceptedUpdate, StoredClientState
from fl_queue.client.progress import tell
from fl_queue.common import disk_space
from fl_queue.models import host_cache
from fl_queue.protocol import identifiers, message
from fl_queue.protocol.codecs import codec, error_feedback
from fl_queue.protocol.records import Manifest
from fl_queue.store import keyspace
from fl_queue.strategies.base import (
    PERSONAL,
    PRIVATE,
    RESIDUAL,
    Strategy,
    client_layouts,
    update_manifest,
)
from fl_queue.tasks.base import ClientContext

log = logging.getLogger(__name__)

#: More than a header has.
_HEAD_BYTES = 64 * 1024


def check_room(job: ClientJob) -> None:
    """Before anything is fetched or trained: an update that cannot be kept would be made again and again."""
    manifest = job.base.manifest if job.base is not None else manifest_of(job)
    strategy = job.strategy()
    layouts = _layouts(job, strategy, manifest)
    sent = update_manifest(strategy, manifest)
    nbytes = _HEAD_BYTES + codec.encoded_nbytes(codec.encoding(job.config.update), sent)
    nbytes += client_state.layout(layouts).nbytes if layouts else 0
    what = "the update"
    if job.base is None and not host_cache.has(job.site.cache, job.run, job.round.fetched):
        nbytes += codec.encoded_nbytes(encoding_of(job), manifest)
        what = "the model and the update"
    disk_space.check(job.site.outbox, nbytes, what)


def kept(job: ClientJob, strategy: Strategy, manifest: Manifest) -> StoredClientState:
    """What this client keeps: of its newest accepted update, of which the control server tells."""
    layouts = _layouts(job, strategy, manifest)
    if not layouts:
        return StoredClientState()
    found = job.store.control.accepted(job.run, job.who)
    accepted = AcceptedUpdate(*found) if found else None
    backed_up = job.store.control.accepted(job.run, keyspace.in_backup(job.who))
    kept = client_state.load(
        job.site.client_states,
        job.run,
        job.who,
        job.round.number,
        accepted,
        client_state.layout(layouts),
        _starts_from(layouts),
        # They come from Redis, and name folders here.
        [origin for origin in job.state.restored_from if identifiers.is_run_id(origin)],
        AcceptedUpdate(*backed_up) if backed_up else None,
    )
    since, own = job.state.state_since, strategy.client_state
    kept = client_state.still_counts(kept, accepted, since, layouts, own)
    if kept.is_missing:
        log.warning("run=%s client=%s state %s", job.run, job.who, kept.note)
        event = {"event": "client_state_missing", "run": job.run, "round": job.round.number}
        tell(job, event | {"what": kept.note})
    return kept


def _layouts(job: ClientJob, strategy: Strategy, manifest: Manifest) -> dict[str, Manifest]:
    return client_layouts(strategy, manifest, job.config.update["error_feedback"])


def _starts_from(layouts: Mapping[str, Manifest]) -> str:
    """What a client without a state starts from."""
    own = {PRIVATE: "the private tensors of version 0", PERSONAL: "the round's model"}
    found = [words for name, words in own.items() if name in layouts]
    return " and ".join([*(["zero"] if layouts.keys() - own.keys() else []), *found])


def keep(
    job: ClientJob,
    strategy: Strategy,
    made: local_update.TrainingResult,
    context: ClientContext,
    residual: Mapping[str, Any],
) -> None:
    """Write what this client keeps once the update is accepted; before the update itself is there."""
    layouts = _layouts(job, strategy, made.manifest)
    if not layouts:
        return
    layout = client_state.layout(layouts)
    encoding = codec.encoding(job.config.update)
    digest = message.pieces_digest(update_message.iter_body(made, encoding, context, residual))
    folder, number = job.site.client_states, job.round.number
    pieces = _kept_pieces(layout, encoding, made, context, residual)
    client_state.write(folder, job.run, job.who, AcceptedUpdate(number, digest), layout, pieces)


def _kept_pieces(
    layout: Manifest,
    encoding: str,
    made: local_update.TrainingResult,
    context: ClientContext,
    residual: Mapping[str, Any],
) -> Iterator[Any]:
    """The states of a layout, one after the other."""
    for state, specs in itertools.groupby(layout.tensors, lambda spec: spec.name.partition("/")[0]):
        if state == RESIDUAL:
            factor, seed = made.answer.factor, update_message.codec_seed(context)
            pieces = error_feedback.corrected(made.pieces(), residual, factor)
            yield from error_feedback.next_residual(encoding, pieces, seed, factor)
        else:
            for spec in specs:
                yield message.little_endian(made.kept(state, spec.name.partition("/")[2]))
