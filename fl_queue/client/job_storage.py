"""Disk storage of a client's job: room for its update, and the client state that it starts from. Without torch."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from fl_queue.client import client_state
from fl_queue.client.assignment import ClientJob, encoding_of, manifest_of
from fl_queue.client.client_state import AcceptedUpdate, ClientStateFolder, StoredClientState
from fl_queue.client.progress import add_event
from fl_queue.common import disk_space
from fl_queue.config.client_layouts import layouts_of
from fl_queue.protocol import identifiers
from fl_queue.protocol.codecs import codec
from fl_queue.protocol.events import ClientStateMissing
from fl_queue.protocol.manifest import Manifest
from fl_queue.store import keyspace
from fl_queue.strategies.base import Strategy
from fl_queue.strategies.layouts import OPTIMIZER, PERSONAL, PRIVATE, update_manifest

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
    layouts = layouts_of(job.config, strategy, manifest)
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
    layouts = layouts_of(job.config, strategy, manifest)
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


def _start_of(layouts: Mapping[str, Manifest]) -> str:
    """Words for the values that a client without a state starts from."""
    own = {
        PRIVATE: "the private tensors of version 0",
        PERSONAL: "the round's model",
        OPTIMIZER: "a new optimizer",
    }
    found = [words for name, words in own.items() if name in layouts]
    return " and ".join([*(["zero"] if layouts.keys() - own.keys() else []), *found])


def _folder(job: ClientJob) -> ClientStateFolder:
    return ClientStateFolder(job.site.client_states, job.run, job.who)
