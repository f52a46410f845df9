"""
Recompute a round from its archived updates and compare digests; check the signatures of these updates.

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
from fl_queue.aggregation.step_sum import StepSum
from fl_queue.aggregation.weighting import largest_weight
from fl_queue.analyses.base import Analysis
from fl_queue.config.run_config import RunConfig
from fl_queue.coordinator.operations import secure_verification
from fl_queue.coordinator.rounds.runs import current_config
from fl_queue.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    MessageError,
    RunStateError,
    StorageError,
)
from fl_queue.models import checkpoint, update_archive
from fl_queue.models.model_store import ModelStore
from fl_queue.models.update_archive import ArchivedUpdate
from fl_queue.protocol import operator_key, signing, tensor_layout
from fl_queue.protocol.manifest import Manifest
from fl_queue.protocol.records import Enrolment, Outcome, RoundRecord
from fl_queue.store import RunState, Store
from fl_queue.strategies import load_strategy
from fl_queue.strategies.base import RoundInfo, Strategy


@dataclass(frozen=True)
class Verdict:
    """
    One round's verification.

    Args:
        round: Number of the round.
        version: The version that it made.
        result: ``same``; ``different``: the recomputed digest differs; ``forged``: an archived update is not
            signed by its client; ``unknown``: the base or an update is not there any more.
        digest: Digest of the version, as recorded.
        reason: The reason, for the last three.
        recomputed: Digest of the recomputed version; empty when unknown.
        signed: Clients whose signature holds, sorted.
        unsigned: Clients whose update was archived without a signature, sorted: it was not signed, or
            archived by a release that stored none.
        unproven: Client -> why its signature cannot be checked.
        forged: Client -> the fault of its signature.
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
        """The checked signatures, as text."""
        parts = [f"{len(self.signed)} signatures hold"] if self.signed else []
        if self.unsigned:
            parts.append(f"{len(self.unsigned)} updates were kept without a signature")
        parts += [f"{client}: {why}" for client, why in self.unproven.items()]
        return ", ".join(parts) or "no signature was checked"


class Signatures:
    """
    Checks the signatures of a round's updates.

    Args:
        store: Has the enrolments with their keys.
        record: Of the round.
    """

    def __init__(self, store: Store, record: RoundRecord) -> None:
        self._control, self._record = store.control, record
        self.signed: list[str] = []
        self.unsigned: list[str] = []
        self.unproven: dict[str, str] = {}
        self.forged: dict[str, str] = {}

    def check(self, client: str, found: ArchivedUpdate) -> None:
        """Check one archived update. Raises ConfigError: the operator's key, or a pin, cannot be used."""
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
        """Whether a client is, or was, enrolled with a key."""
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
        store: Both servers.
        state: The run.
        state_dir: The aggregator's folder; checkpoints and archived updates are below it.
        number: Round; None: all.
        strategy_allow: Own strategies that may be loaded.

    Raises:
        RunStateError: There is no such committed round.
    """
    records = [
        record
        for record in store.control.history.records(state.run_id)
        if record.outcome in (Outcome.committed, Outcome.restored)
        and number in (None, record.round)
    ]
    if not records:
        what = "has no committed round" if number is None else f"has not committed round {number}"
        raise RunStateError(state.name, f"{what}; see `fl-queue history {state.name}`")
    states: dict[str, bytes] = {}
    for record in records:
        yield _verify(store, state, state_dir, record, strategy_allow, states)


@dataclass(frozen=True)
class BasePartVerdict:
    """
    Verification of a run's base part.

    Args:
        digest: As the manifest names it.
        result: ``same``; ``different``: the file is damaged; ``unknown``: it is not on this machine.
        reason: The reason, for the last two.
    """

    digest: str
    result: Literal["same", "different", "unknown"]
    reason: str = ""


def check_base_part(store: Store, run: str, state_dir: Path) -> BasePartVerdict | None:
    """
    Compare the run's base part on this machine's disk with its digest; it is that of all versions.

    Returns:
        None of a run that publishes none.
    """
    manifest = store.control.versions.manifest(run)
    base = manifest.published if manifest is not None else None
    if base is None:
        return None
    folder = checkpoint.checkpoint_folder(state_dir, run)
    is_there = (folder / checkpoint.file_name(base.digest, base)).is_file()
    try:
        checkpoint.open_body(folder, base.digest, base)
    except CheckpointError as exc:
        return BasePartVerdict(base.digest, "different" if is_there else "unknown", exc.reason)
    return BasePartVerdict(base.digest, "same")


def _verify(
    store: Store,
    state: RunState,
    state_dir: Path,
    record: RoundRecord,
    strategy_allow: Sequence[str],
    states: dict[str, bytes],
) -> Verdict:
    version, digest = record.version or 0, record.digest or ""
    if record.outcome == Outcome.restored:
        return _verify_restored(store, state, record)
    config = current_config(store, state.run_id, record.config_segment)
    if not config.keeps_answers:
        reason = "its updates were not kept; set model.keep_updates = true"
        return Verdict(record.round, version, "unknown", digest, reason=reason)
    signatures, found = Signatures(store, record), Verdict(record.round, version, "same", digest)
    try:
        recomputed = recompute(
            store, state.run_id, state_dir, record, config, strategy_allow, signatures, states
        )
    except (StorageError, DataError, ConfigError) as exc:
        found = replace(found, result="unknown", reason=str(exc))
    except MessageError as exc:
        found = replace(found, result="different", reason=exc.reason)
    else:
        found = replace(found, recomputed=recomputed)
        if recomputed != digest:
            reason = "these updates and this base make another model"
            found = replace(found, result="different", reason=reason)
    return _with_signatures(found, signatures)


def _verify_restored(store: Store, state: RunState, record: RoundRecord) -> Verdict:
    """Compare a version that is an older one again with that one: nothing was computed."""
    version, digest = record.version or 0, record.digest or ""
    older = store.control.versions.get(state.run_id, record.base_version).get("digest", "")
    if older == digest == record.base_digest:
        return Verdict(record.round, version, "same", digest, recomputed=older)
    reason = f"it is not version {record.base_version}, which it was made from"
    return Verdict(record.round, version, "different", digest, recomputed=older, reason=reason)


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
    states: dict[str, bytes],
) -> str:
    """
    Digest of the version that a round's base and accepted updates make.

    Args:
        store: Both servers.
        run: Run id.
        state_dir: The aggregator's folder.
        record: Of the round.
        config: The one that was in force.
        strategy_allow: Own strategies that may be loaded.
        signatures: Records for each update whether its signature holds.
        states: Digest -> body of the state of an analysis that was computed last, from which the next step goes on.

    Raises:
        StorageError: The base or a state of it is not there any more, or this machine cannot store it.
        ConfigError: The strategy may not be loaded.
        DataError: An update is not there, or damaged.
        MessageError: An update is not one that could have been accepted.
    """
    manifest = store.control.versions.manifest(run)
    if manifest is None:
        raise DataError(run, "the run has no manifest")
    if config.analysis is not None:
        return _digest_of_step(
            ModelStore(store, run, config.redis.chunk_bytes, state_dir),
            record,
            config.analysis,
            signatures,
            states,
        )
    merger = _merger_of(manifest, record, config, state_dir)
    models = ModelStore(store, run, config.redis.chunk_bytes, state_dir)
    _merge_archived(models, merger, record, signatures)
    strategy = load_strategy(config.aggregation.strategy, config.strategy, strategy_allow)
    return _digest_of_next(models, merger, strategy, record)


def _merge_archived(
    models: ModelStore, merger: UpdateMerger, record: RoundRecord, signatures: Signatures
) -> None:
    """Merge the updates of a round as they are archived, in clear or masked. Raises as ``recompute``."""
    masked = None
    if record.secure:
        masked = secure_verification.MaskedRound(record, merger, models.state_dir, models.run)
    for client, digest in sorted(record.accepted.items()):
        update = update_archive.read(models.state_dir, models.run, record.round, client, digest)
        signatures.check(client, update)
        if masked is not None:
            masked.add(client, update)
        else:
            _merge_as_recorded(merger, client, update, record)
    if masked is not None:
        masked.merge(models.open_body(record.base_digest, merger.manifest).view)


def _digest_of_step(
    models: ModelStore,
    record: RoundRecord,
    analysis: Analysis,
    signatures: Signatures,
    states: dict[str, bytes],
) -> str:
    """Digest of the state that a step of an analysis makes. Raises as ``recompute``."""
    step = StepSum.of_body(analysis, _state_before(models, record, analysis, states))
    for client, digest in sorted(record.accepted.items()):
        update = update_archive.read(models.state_dir, models.run, record.round, client, digest)
        signatures.check(client, update)
        step.check(update.header)
        step.add(update.header, update.body)
    made = step.version_of(step.next_state())
    found = tensor_layout.pieces_digest([made])
    states.clear()
    states[found] = made.tobytes()
    return found


def _state_before(
    models: ModelStore, record: RoundRecord, analysis: Analysis, states: Mapping[str, bytes]
) -> bytes:
    """
    The state that a step begins with: of the step before, of no step at all, or from the checkpoint.

    A run keeps a few of its states alone (``model.keep_versions``), and all of them follow from the first.
    """
    if record.base_digest in states:
        return states[record.base_digest]
    first = tensor_layout.little_endian(analysis.version(analysis.initial()))
    if tensor_layout.pieces_digest([first]) == record.base_digest:
        return first.tobytes()
    return bytes(models.open_body(record.base_digest, analysis.manifest).view)


def _merger_of(
    manifest: Manifest, record: RoundRecord, config: RunConfig, state_dir: Path
) -> UpdateMerger:
    w_max = largest_weight(config.aggregation)
    weights = StalenessWeights.from_dict(record.discount)
    if weights is not None:
        w_max = weights.full(w_max)
    folder = state_dir / "gathered"
    return UpdateMerger.of_round(manifest, config, record.scales, w_max, folder, record.discount)


def _merge_as_recorded(
    merger: UpdateMerger, client: str, update: ArchivedUpdate, record: RoundRecord
) -> None:
    """Merge an update, and compare its weight and norm with the record. Raises MessageError."""
    header = update.header
    merger.check(header)
    recorded, staleness = record.weights[client], record.base_version - header.base_version
    if staleness != record.staleness.get(client, 0):
        reason = f"made from version {header.base_version}, recorded otherwise"
        raise MessageError(f"{client}: {reason}")
    # The enrolled limit of that time is not recorded: a weight below the claim shows that it was lower.
    discount = merger.discount
    most = recorded if discount is None else record.counted[client] // discount.unit
    merged = merger.add(header, update.body, most, staleness)
    if merged.weight != recorded:
        raise MessageError(f"{client}: weight {merged.weight}, recorded {recorded}")
    if merged.norm != record.norms.get(client):
        raise MessageError(f"{client}: norm {merged.norm}, recorded {record.norms.get(client)}")


def _digest_of_next(
    models: ModelStore, merger: UpdateMerger, strategy: Strategy, record: RoundRecord
) -> str:
    """Compute the next version and the strategy's state, and compare the state's digests. Raises MessageError."""
    manifest = merger.manifest
    base = models.open_body(record.base_digest, manifest)
    state = models.state_arrays(record.base_server_state, manifest)
    hashers = {name: tensor_layout.Hasher() for name in strategy.server_state}
    sinks = {name: hasher.update for name, hasher in hashers.items()}
    facts = RoundInfo(
        (record.version or 0), merger.count, record.population, record.base_population
    )
    stale = rebase.stale_weights(record, manifest)
    bodies = {version: models.open_version(version, manifest) for version in stale}
    older = {version: body.view for version, body in bodies.items()}
    pieces = merger.next_model(base.view, state, sinks, facts, strategy, older, stale)
    digest = tensor_layout.pieces_digest(pieces)
    for name, hasher in hashers.items():
        if hasher.digest != record.server_state.get(name):
            raise MessageError(f"the strategy's state {name!r} comes out as another one")
    return digest
