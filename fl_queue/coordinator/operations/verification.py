"""
Recomputing a round from its kept updates, and comparing digests; and checking who has signed these updates.

The model is a function of base, cohort and accepted set; the history records all three. No torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from fl_queue.aggregation import rebase
from fl_queue.aggregation.merge import UpdateMerger
from fl_queue.aggregation.staleness import StalenessWeights
from fl_queue.aggregation.weighting import largest_weight
from fl_queue.config.run_config import RunConfig
from fl_queue.coordinator.rounds.runs import current_config
from fl_queue.errors import CheckpointError, ConfigError, DataError, MessageError, RunStateError
from fl_queue.models import update_archive
from fl_queue.models.model_store import ModelStore
from fl_queue.models.update_archive import ArchivedUpdate
from fl_queue.protocol import operator_key, signing, tensor_layout
from fl_queue.protocol.records import Enrolment, RoundRecord
from fl_queue.store import RunState, Store
from fl_queue.strategies import load_strategy
from fl_queue.strategies.base import RoundInfo


@dataclass(frozen=True)
class Verdict:
    """
    One round's verification.

    Args:
        result: ``same``; ``different``: the recomputed digest is another one; ``forged``: a kept update
            is not signed by the client whose it should be; ``unknown``: what it takes is not there any more.
        reason: Says why, for the last three.
        recomputed: Digest of the recomputed version; empty when unknown.
        signed: Clients whose signature holds, sorted.
        unsigned: Clients whose update was kept without a signature, sorted: it was not signed, or kept by a
            release that kept none.
        unproven: Client -> why nobody can tell whether its signature holds.
        forged: Client -> what is wrong with its signature.
    """

    round: int
    version: int
    result: Literal["same", "different", "forged", "unknown"]
    digest: str
    recomputed: str = ""
    reason: str = ""
    signed: Sequence[str] = ()
    unsigned: Sequence[str] = ()
    unproven: Mapping[str, str] = field(default_factory=dict)
    forged: Mapping[str, str] = field(default_factory=dict)

    @property
    def signatures(self) -> str:
        """What was found of the signatures, in words."""
        parts = [f"{len(self.signed)} signatures hold"] if self.signed else []
        if self.unsigned:
            parts.append(f"{len(self.unsigned)} updates were kept without a signature")
        parts += [f"{client}: {why}" for client, why in self.unproven.items()]
        return ", ".join(parts) or "no signature was checked"


class Signatures:
    """
    Who has signed the updates of a round.

    Args:
        store: Knows who is enrolled, and with which keys.
        record: Of the round.
    """

    def __init__(self, store: Store, record: RoundRecord) -> None:
        self._control, self._record = store.control, record
        self.signed: list[str] = []
        self.unsigned: list[str] = []
        self.unproven: dict[str, str] = {}
        self.forged: dict[str, str] = {}

    def check(self, client: str, found: ArchivedUpdate) -> None:
        """Look at one kept update. Raises ConfigError: the operator's key, or a pin, cannot be used."""
        recorded = self._record.keys.get(client, "")
        if found.proof is None:
            if recorded:
                self.forged[client] = f"its signature is gone; it was signed with key {recorded}"
            else:
                self.unsigned.append(client)
            return
        sealed, enrolment = found.proof
        name = operator_key.fingerprint(enrolment.key)
        if sealed.signer != client or not signing.is_signed_by(sealed, enrolment.key):
            self.forged[client] = f"it is not signed with key {name}"
        elif name != recorded:
            self.forged[client] = (
                f"it is signed with key {name}, and {recorded or 'none'} is in the history"
            )
        elif self._is_of(client, enrolment):
            self.signed.append(client)
        elif enrolment.signature:
            self.forged[client] = f"the operator has not enrolled it with key {name}"
        else:
            self.unproven[client] = (
                f"it is signed with key {name}, which is not its key now, and whose enrolment was not signed"
            )

    def _is_of(self, client: str, enrolment: Enrolment) -> bool:
        """Whether a client is, or was once, enrolled with a key."""
        known = self._control.enrolments.get(client)
        if known is not None and known.key == enrolment.key:
            return True
        return self._control.enrolments.pins.is_signed(client, enrolment)


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
        for record in store.control.history.records(state.run_id)
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
    if not config.model.keep_updates:
        reason = "its updates were not kept; set model.keep_updates = true"
        return Verdict(record.round, version, "unknown", digest, reason=reason)
    signatures, found = Signatures(store, record), Verdict(record.round, version, "same", digest)
    try:
        recomputed = recompute(
            store, state.run_id, state_dir, record, config, strategy_allow, signatures
        )
    except (CheckpointError, DataError, ConfigError) as exc:
        found = replace(found, result="unknown", reason=str(exc))
    except MessageError as exc:
        found = replace(found, result="different", reason=exc.reason)
    else:
        found = replace(found, recomputed=recomputed)
        if recomputed != digest:
            reason = "these updates and this base make another model"
            found = replace(found, result="different", reason=reason)
    return _with_signatures(found, signatures)


def _with_signatures(found: Verdict, signatures: Signatures) -> Verdict:
    whole = replace(
        found,
        signed=signatures.signed,
        unsigned=signatures.unsigned,
        unproven=signatures.unproven,
        forged=signatures.forged,
    )
    if not signatures.forged:
        return whole
    lines = [f"{client}: {why}" for client, why in signatures.forged.items()]
    reason = "; ".join([*lines, *([found.reason] if found.reason else [])])
    return replace(whole, result="forged", reason=reason)


def recompute(
    store: Store,
    run: str,
    state_dir: Path,
    record: RoundRecord,
    config: RunConfig,
    strategy_allow: Sequence[str],
    signatures: Signatures,
) -> str:
    """
    Digest of the version that a round's base and accepted updates make.

    Args:
        config: The one that was in force.
        strategy_allow: Own strategies that may be loaded.
        signatures: Learns of each update who has signed it.

    Raises:
        CheckpointError: The base is not there any more.
        ConfigError: The strategy may not be loaded.
        DataError: An update is not there, or damaged.
        MessageError: An update is not one that could have been accepted.
    """
    manifest = store.control.versions.manifest(run)
    if manifest is None:
        raise DataError(run, "the run has no manifest")
    w_max = largest_weight(config.aggregation)
    found = StalenessWeights.from_dict(record.discount)
    if found is not None:
        w_max = found.full(w_max)
    folder = state_dir / "gathered"
    merge = UpdateMerger.of_round(manifest, config, record.scales, w_max, folder, record.discount)
    for client, digest in sorted(record.accepted.items()):
        update = update_archive.read(state_dir, run, record.round, client, digest)
        signatures.check(client, update)
        header, body = update.header, update.body
        merge.check(header)
        recorded, staleness = record.weights[client], record.base_version - header.base_version
        if staleness != record.staleness.get(client, 0):
            reason = f"made from version {header.base_version}, recorded otherwise"
            raise MessageError(f"{client}: {reason}")
        # What it was enrolled with then is not recorded; a weight below its claim says that it was less.
        most = recorded if found is None else record.counted[client] // found.unit
        added = merge.add(header, body, most, staleness)
        if added.weight != recorded:
            raise MessageError(f"{client}: weight {added.weight}, recorded {recorded}")
        if added.norm != record.norms.get(client):
            raise MessageError(f"{client}: norm {added.norm}, recorded {record.norms.get(client)}")
    models = ModelStore(store, run, config.redis.chunk_bytes, state_dir)
    base = models.open_body(record.base_digest, manifest)
    strategy = config.aggregation.strategy
    loaded = load_strategy(strategy, config.strategy, strategy_allow)
    state = models.state_arrays(record.base_server_state, manifest)
    hashers = {name: tensor_layout.Hasher() for name in loaded.server_state}
    sinks = {name: hasher.update for name, hasher in hashers.items()}
    facts = RoundInfo((record.version or 0), merge.count, record.population, record.base_population)
    stale = rebase.stale_weights(record, manifest)
    bodies = {version: models.open_version(version, manifest) for version in stale}
    older = {version: body.view for version, body in bodies.items()}
    pieces = merge.next_model(base.view, state, sinks, facts, loaded, older, stale)
    digest = tensor_layout.pieces_digest(pieces)
    for name, hasher in hashers.items():
        if hasher.digest != record.server_state.get(name):
            raise MessageError(f"the strategy's state {name!r} comes out as another one")
    return digest
