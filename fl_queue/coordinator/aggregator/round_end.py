"""What is written of a round when it ends: its record, its last receipts, what clients keep. No Redis here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from fl_queue import metrics
from fl_queue.config.run_config import RunConfig
from fl_queue.coordinator.aggregator.partial_sum import PartialRoundState
from fl_queue.coordinator.rounds import lifecycle
from fl_queue.coordinator.rounds.lifecycle import Ending
from fl_queue.protocol import job_origins
from fl_queue.protocol.manifest import Manifest
from fl_queue.protocol.records import Receipt, RoundRecord
from fl_queue.store import RoundState
from fl_queue.strategies.base import Strategy, client_layouts

#: Clients that a line names.
_NAMED = 8


def record_of(
    current: RoundState,
    ending: Ending,
    elapsed_s: float,
    config: RunConfig,
    progress: PartialRoundState,
) -> RoundRecord:
    """The record of a round with what has come of it. Args: ``progress``: what was taken."""
    base = lifecycle.base_record(current, ending, elapsed_s, config)
    return replace(
        lifecycle.with_updates(base, progress.receipts),
        capped=_capped(current, config, progress.receipts),
        validation=metrics.merge_clients(progress.validation),
        train=metrics.merge_clients(progress.training),
    )


def _capped(current: RoundState, config: RunConfig, receipts: Mapping[str, Receipt]) -> list[str]:
    """Whose weight is less than the examples it is by."""
    if config.aggregation["weighting"] != "examples" or current.purpose != "train":
        return []
    most = config.aggregation["max_examples"]
    return [
        client
        for client, found in sorted(receipts.items())
        # Staleness makes other weights of them.
        if found.is_in
        and (
            found.num_examples > most
            or (not current.is_async and found.weight < found.num_examples)
        )
    ]


def events(record: RoundRecord, config: RunConfig) -> Iterator[dict[str, object]]:
    """What an operator has to know of a round that has been committed."""
    if record.outcome != "committed":
        return
    if record.capped:
        most = config.aggregation["max_examples"]
        reason = (
            f"{capped(record)}: aggregation.max_examples = {most}, or what they are enrolled with"
        )
        yield {"event": "weights_capped", "round": record.round, "reason": reason}
    if record.state_lost:
        yield {"event": "client_state_lost", "round": record.round, "reason": lost(record)}


def final(ending: Ending, receipts: Mapping[str, Receipt]) -> Mapping[str, Receipt]:
    """The receipts once a round has ended: what was received is accepted, unless it was abandoned."""
    if ending.outcome == "abandoned":
        return receipts
    return {
        client: replace(receipt, status="accepted") if receipt.status == "received" else receipt
        for client, receipt in receipts.items()
    }


def keeping(
    current: RoundState,
    record: RoundRecord,
    manifest: Manifest | None,
    strategy: Strategy | None,
    config: RunConfig,
) -> dict[str, tuple[int, str]]:
    """Client -> round of its job and digest of its update, where clients keep something with it."""
    if strategy is None or manifest is None:
        return {}  # Version 0 is made: nobody has trained.
    if not client_layouts(strategy, manifest, config.update["error_feedback"]):
        return {}
    return job_origins.by_job(current, record.accepted)


def capped(record: RoundRecord) -> str:
    """Whose weights were capped, in words."""
    return f"{_named(record.capped)} told more examples than count"


def lost(record: RoundRecord) -> str:
    """Who had lost its state, in words."""
    return (
        f"{_named(record.state_lost)} had lost what it keeps for {record.strategy}: "
        "the state of the strategy is zero again, at the server and at all clients"
    )


def _named(clients: Sequence[str]) -> str:
    more = f" and {len(clients) - _NAMED} more" if len(clients) > _NAMED else ""
    return f"{', '.join(clients[:_NAMED])}{more}"
