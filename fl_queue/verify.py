"""
Recomputing a round from its kept updates, and comparing digests.

The model is a function of base, cohort and accepted set; the history records all three. No torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fl_queue import blob, kept, models, rebase
from fl_queue.config import RunConfig
from fl_queue.errors import BlobError, CheckpointError, ConfigError, DataError, RunStateError
from fl_queue.merge import Merge
from fl_queue.records import RoundRecord
from fl_queue.runs import current_config
from fl_queue.staleness import Discount
from fl_queue.store import RunState, Store
from fl_queue.strategies import largest_weight, load_strategy
from fl_queue.strategies.base import Facts


@dataclass(frozen=True)
class Verdict:
    """
    One round's verification.

    Args:
        result: ``same``; ``different``: the recomputed digest is another one; ``unknown``: what it
            takes is not there any more.
        reason: Says why, for the last two.
        recomputed: Digest of the recomputed version; empty when unknown.
    """

    round: int
    version: int
    result: Literal["same", "different", "unknown"]
    digest: str
    recomputed: str = ""
    reason: str = ""


def verify(
    store: Store,
    state: RunState,
    state_dir: Path,
    number: int | None = None,
    strategy_allow: Sequence[str] = (),
) -> Iterator[Verdict]:
    """
    Recompute the committed rounds of a run, or one of them, one after the other.

    Args:
        state_dir: The aggregator's, where checkpoints and kept updates are.
        strategy_allow: Own strategies that may be loaded.

    Raises:
        RunStateError: There is no such committed round.
    """
    records = [
        record
        for record in store.control.history(state.run_id)
        if record.outcome == "committed" and number in (None, record.round)
    ]
    if not records:
        what = "has no committed round" if number is None else f"has not committed round {number}"
        raise RunStateError(state.name, f"{what}; see `fl-queue history {state.name}`")
    for record in records:
        yield _verify(store, state, state_dir, record, strategy_allow)


def _verify(
    store: Store,
    state: RunState,
    state_dir: Path,
    record: RoundRecord,
    strategy_allow: Sequence[str],
) -> Verdict:
    version, digest = record.version or 0, record.digest or ""
    config = current_config(store, state.run_id, record.config_segment)
    if not config.model["keep_updates"]:
        reason = "its updates were not kept; set model.keep_updates = true"
        return Verdict(record.round, version, "unknown", digest, reason=reason)
    try:
        recomputed = recompute(store, state.run_id, state_dir, record, config, strategy_allow)
    except (CheckpointError, DataError, ConfigError) as exc:
        return Verdict(record.round, version, "unknown", digest, reason=str(exc))
    except BlobError as exc:
        return Verdict(record.round, version, "different", digest, reason=exc.reason)
    if recomputed == digest:
        return Verdict(record.round, version, "same", digest, recomputed)
    reason = "these updates and this base make another model"
    return Verdict(record.round, version, "different", digest, recomputed, reason)


def recompute(
    store: Store,
    run: str,
    state_dir: Path,
    record: RoundRecord,
    config: RunConfig,
    strategy_allow: Sequence[str] = (),
) -> str:
    """
    Digest of the version that a round's base and accepted updates make.

    Args:
        config: The one that was in force.
        strategy_allow: Own strategies that may be loaded.

    Raises:
        CheckpointError: The base is not there any more.
        ConfigError: The strategy may not be loaded.
        DataError: An update is not there, or damaged.
        BlobError: An update is not one that could have been accepted.
    """
    manifest = store.control.manifest(run)
    if manifest is None:
        raise DataError(run, "the run has no manifest")
    w_max = largest_weight(config.aggregation)
    found = Discount.from_dict(record.discount)
    if found is not None:
        w_max = found.full(w_max)
    folder = state_dir / "gathered"
    merge = Merge.of_round(manifest, config, record.scales, w_max, folder, record.discount)
    for client, digest in sorted(record.accepted.items()):
        header, body = kept.read(state_dir, run, record.round, client, digest)
        merge.check(header)
        recorded, staleness = record.weights[client], record.base_version - header.base_version
        if staleness != record.staleness.get(client, 0):
            reason = f"made from version {header.base_version}, recorded otherwise"
            raise BlobError(f"{client}: {reason}")
        # What it was enrolled with then is not recorded; a weight below its claim says that it was less.
        most = recorded if found is None else record.counted[client] // found.unit
        added = merge.add(header, body, most, staleness)
        if added.weight != recorded:
            raise BlobError(f"{client}: weight {added.weight}, recorded {recorded}")
        if added.norm != record.norms.get(client):
            raise BlobError(f"{client}: norm {added.norm}, recorded {record.norms.get(client)}")
    base = models.base_body(
        store, run, record.base_digest, manifest, config.redis["chunk_bytes"], state_dir
    )
    chunk_bytes, strategy = config.redis["chunk_bytes"], config.aggregation["strategy"]
    loaded = load_strategy(strategy, config.strategy, strategy_allow)
    state = models.state_arrays(
        store, run, record.base_server_state, manifest, chunk_bytes, state_dir
    )
    hashers = {name: blob.Hasher() for name in loaded.server_state}
    sinks = {name: hasher.update for name, hasher in hashers.items()}
    facts = Facts((record.version or 0), merge.count, record.population, record.base_population)
    stale = rebase.stale_weights(record, manifest)
    bodies = {
        version: models.body_of_version(store, run, version, manifest, chunk_bytes, state_dir)
        for version in stale
    }
    older = {version: body.view for version, body in bodies.items()}
    pieces = merge.next_model(base.view, state, sinks, facts, loaded, older, stale)
    digest = blob.pieces_digest(pieces)
    for name, hasher in hashers.items():
        if hasher.digest != record.server_state.get(name):
            raise BlobError(f"the strategy's state {name!r} comes out as another one")
    return digest
