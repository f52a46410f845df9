"""Build the records of a round that ends: its history entry, its last receipts, its events. No Redis here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from fl_queue import metrics
from fl_queue.config.client_layouts import layouts_of
from fl_queue.config.run_config import RunConfig
from fl_queue.coordinator.aggregator.partial_sum import PartialRoundState
from fl_queue.coordinator.rounds import lifecycle
from fl_queue.coordinator.rounds.ending import Ending
from fl_queue.protocol import job_origins
from fl_queue.protocol.events import ClientStateLost, Event, WeightsCapped
from fl_queue.protocol.manifest import Manifest
from fl_queue.protocol.records import METRICS, Outcome, Purpose, Receipt, RoundRecord, Verdict
from fl_queue.store import RoundState
from fl_queue.strategies.base import Strategy

#: Clients that a line names.
_MAX_NAMED = 8


def build_record(
    current: RoundState,
    ending: Ending,
    elapsed_s: float,
    config: RunConfig,
    progress: PartialRoundState,
) -> RoundRecord:
    """The record of a round with its updates. Args: ``progress``: their receipts and metrics."""
    base = lifecycle.base_record(current, ending, elapsed_s, config)
    return replace(
        lifecycle.with_updates(base, progress.receipts),
        capped=_capped(current, config, progress.receipts),
        validation=metrics.merge_clients(progress.validation),
        train=metrics.merge_clients(progress.training),
    )


def declared_metrics(receipts: Mapping[str, Receipt]) -> tuple[str, ...]:
    """The metrics that the maker of version 0 has declared; none that cannot be read."""
    for _, receipt in sorted(receipts.items()):
        if receipt.is_in:
            return metrics.parse_record(receipt.environment.get(METRICS, []))
    return ()


def _capped(current: RoundState, config: RunConfig, receipts: Mapping[str, Receipt]) -> list[str]:
    """Clients whose weight is less than their number of examples."""
    if config.aggregation.weighting != "examples" or current.purpose != Purpose.train:
        return []
    most = config.aggregation.max_examples
    return [
        client
        for client, found in sorted(receipts.items())
        # Staleness changes the weights of an asynchronous round.
        if found.is_in
        and (
            found.num_examples > most
            or (not current.is_async and found.weight < found.num_examples)
        )
    ]


def events(record: RoundRecord, config: RunConfig) -> Iterator[Event]:
    """Events of a committed round that its operator should see."""
    if record.outcome != Outcome.committed:
        return
    if record.capped:
        most = config.aggregation.max_examples
        reason = (
            f"{capped(record)}: aggregation.max_examples = {most}, or what they are enrolled with"
        )
        yield WeightsCapped(round=record.round, reason=reason)
    if record.state_lost:
        yield ClientStateLost(round=record.round, reason=lost(record))


def final_receipts(ending: Ending, receipts: Mapping[str, Receipt]) -> Mapping[str, Receipt]:
    """The receipts after the round: received updates are accepted, unless it was abandoned."""
    if ending.outcome == Outcome.abandoned:
        return receipts
    return {
        client: replace(receipt, status=Verdict.accepted)
        if receipt.status == Verdict.received
        else receipt
        for client, receipt in receipts.items()
    }


def updates_with_state(
    current: RoundState,
    record: RoundRecord,
    manifest: Manifest | None,
    strategy: Strategy | None,
    config: RunConfig,
) -> dict[str, tuple[int, str]]:
    """Client -> round of its job and digest of its update, where clients store state with an update."""
    if strategy is None or manifest is None:
        return {}  # The round makes version 0, without training.
    if not layouts_of(config, strategy, manifest):
        return {}
    return job_origins.by_job(current, record.accepted)


def capped(record: RoundRecord) -> str:
    """The clients whose weights were capped, as text."""
    return f"{_named(record.capped)} reported more examples than count"


def lost(record: RoundRecord) -> str:
    """The clients that had lost their state, as text."""
    return (
        f"{_named(record.state_lost)} had lost the client state of {record.strategy}: "
        "the state of the strategy is zero again, at the server and at all clients"
    )


def _named(clients: Sequence[str]) -> str:
    more = f" and {len(clients) - _MAX_NAMED} more" if len(clients) > _MAX_NAMED else ""
    return f"{', '.join(clients[:_MAX_NAMED])}{more}"
