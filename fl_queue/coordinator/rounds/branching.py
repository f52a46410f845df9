"""
Go on from an older version: it becomes the newest one again, under a new number.

    version   0 -> 1 -> 2 -> 3 -> 4          5 (the digest of 2) -> 6
    round          1    2    3    4          5 (restored)           6

Nothing is copied and nothing is lost: a version is named by its digest, so a branch is one entry, one record of
the history and an event, written in the transaction that decides it. What clients keep counts only if it is of
the rounds that made the version gone back to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fl_queue.config.client_layouts import layouts_of
from fl_queue.config.run_config import RunConfig
from fl_queue.coordinator.rounds import statement_signing
from fl_queue.errors import UnknownVersion
from fl_queue.protocol import job_origins
from fl_queue.protocol.events import RoundRestored
from fl_queue.protocol.manifest import Manifest
from fl_queue.protocol.records import Outcome, Purpose, RoundRecord
from fl_queue.store import RunState, Store
from fl_queue.store.transactions.branches import Branch


def branch(store: Store, state: RunState, config: RunConfig, version: int, reason: str) -> Branch:
    """
    The writes that make an older version the newest one.

    Args:
        state: Of a run without an open round, as its hash has it now.
        config: That goes on.
        version: The older one.
        reason: Of the record and the event.

    Raises:
        UnknownVersion: There is no such version.
        RunStateError: The run is signed, and this version is not.
    """
    run, versions = state.run_id, store.control.versions.all(state.run_id)
    if version not in versions:
        there = f"0 to {max(versions)}" if versions else "none yet"
        raise UnknownVersion(state.name, version, f"does not exist (versions: {there})")
    history, manifest = store.control.history.records(run), store.control.versions.manifest(run)
    old, number, round_ = versions[version], (state.version or 0) + 1, state.round + 1
    keeps, counting = not needs_state(config), job_origins.newest_accepted(history, version)
    entry = _entry(old, version, round_, with_state=not keeps)
    signature = statement_signing.again(store, state, version, number, entry)
    record = RoundRecord(
        round=round_,
        purpose=Purpose.restore,
        outcome=Outcome.restored,
        reason=reason,
        base_version=version,
        base_digest=old["digest"],
        version=number,
        digest=old["digest"],
        strategy=config.aggregation.strategy,
        opened_at=round(store.control.now(), 3),
        config_segment=state.segment,
        population=len(state.population),
        server_state=dict(entry.get("server_state", {})),
    )
    accepted = {client for past in history for client in past.accepted}
    return Branch(
        number=number,
        entry={**entry, **({"signature": signature} if signature else {})},
        record=record,
        fields=_fields(record, old, entry, keeps),
        accepted=counting if _keeps_anything(config, manifest) else {},
        forgotten=sorted(accepted - set(counting)),
        event=RoundRestored(round=round_, version=number, of=version, reason=reason),
    )


def _fields(
    record: RoundRecord, old: dict[str, Any], entry: dict[str, Any], keeps: bool
) -> dict[str, Any]:
    """
    The fields of the run's hash that change.

    Args:
        old, entry: The older version's entry, and the new one's.
        keeps: Whether clients keep a share of the strategy's state, which begins anew.
    """
    return {
        "version": str(record.version),
        "round": str(record.round),
        "digest": old["digest"],
        "download": old.get("download", ""),
        "server_state": entry.get("server_state", {}),
        **({"state_since": str(record.round)} if keeps else {}),
    }


def needs_state(config: RunConfig) -> bool:
    """
    Whether a version that is gone back to needs what the strategy keeps with it.

    Not where clients keep a share of that, which has to fit the server's: both begin anew. That of an own
    strategy is code that this machine does not import: it is taken for one of which clients keep a share.
    """
    return ":" not in config.aggregation.strategy and not config.plain_strategy().client_state


def _keeps_anything(config: RunConfig, manifest: Manifest | None) -> bool:
    """Whether clients keep anything with an accepted update: of the strategy, or tensors of their own."""
    if manifest is None or ":" in config.aggregation.strategy:
        return True
    return bool(layouts_of(config, config.plain_strategy(), manifest))


def _entry(old: Mapping[str, Any], version: int, round_: int, with_state: bool) -> dict[str, Any]:
    """
    The new version in the run's list. Args: ``old``: the older one's.

    Without the strategy's state where clients have a share of it: theirs begins at zero, and so does the
    server's.
    """
    left_out = {"signature"} | (set() if with_state else {"server_state", "population"})
    kept = {key: value for key, value in old.items() if key not in left_out}
    return {**kept, "round": round_, "of": version}
