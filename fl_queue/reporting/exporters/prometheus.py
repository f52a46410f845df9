"""
The state of all runs as Prometheus reads it: everything is computed from Redis at each scrape.

Counters of a run are sums over its history, so they go on where they were when the exporter is
started anew. Labels are names of runs, roles, queues: of clients there may be too many.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from threading import Lock
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from fl_queue import metrics
from fl_queue.common import escaping
from fl_queue.coordinator.rounds.runs import current_config
from fl_queue.errors import StoreUnavailable, UnknownRun
from fl_queue.models import selection
from fl_queue.protocol import identifiers
from fl_queue.protocol.codecs import codec
from fl_queue.protocol.manifest import Manifest
from fl_queue.protocol.records import Outcome, RoundRecord, Verdict
from fl_queue.protocol.state import RunPhase
from fl_queue.store import RunState, Store, keyspace, server_facts
from fl_queue.store.jobs import dispatch

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
#: Upper bounds of the classes of round lengths, seconds.
BOUNDS_S = (1.0, 3.0, 10.0, 30.0, 60.0, 180.0, 600.0, 1800.0, 3600.0, 14400.0, 86400.0)
STATES = tuple(RunPhase)
OUTCOMES = (
    Outcome.committed, Outcome.abandoned, Outcome.evaluated, Outcome.cancelled, Outcome.restored
)  # fmt: skip
#: All that an update comes to, "other" what an older or newer version wrote.
_VERDICTS = (
    *(verdict for verdict in Verdict if verdict != Verdict.received),
    "missing",
    "other",
)


@dataclass
class _Ledger:
    """Counts of one run so far."""

    seen: int = 0
    cursor: str = "0-0"
    healed: int = 0
    rounds: Counter[str] = field(default_factory=Counter)
    updates: Counter[str] = field(default_factory=Counter)
    lengths: Counter[float] = field(default_factory=Counter)
    seconds: float = 0.0
    nbytes: int = 0
    #: Metric of the newest validation -> its value, and how many clients and examples it is of.
    validation: dict[str, tuple[float, ...]] = field(default_factory=dict)

    def add(self, record: RoundRecord, update_nbytes: int) -> None:
        """Count one ended round."""
        self.rounds[record.outcome] += 1
        self.updates[Verdict.accepted] += len(record.accepted)
        self.updates["missing"] += len(record.missing)
        self.updates.update(_verdict(reason) for reason in record.rejected.values())
        self.nbytes += len(record.accepted) * update_nbytes
        self.seconds += record.elapsed_s
        bound = next((bound for bound in BOUNDS_S if record.elapsed_s <= bound), float("inf"))
        self.lengths[bound] += 1
        if found := metrics.finish(record.validation):
            of = metrics.told_by(record.validation)
            self.validation = {name: (value, *of.get(name, ())) for name, value in found.items()}


class RunsCollector(Collector):
    """
    Read Redis at each scrape, and continue the counts of each run.

    An unreachable Redis is ``flq_up 0``, not an error.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._ledgers: dict[str, _Ledger] = {}
        self._lock = Lock()

    def describe(self) -> list[Metric]:
        """Describe no metrics, as registering must not read Redis."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All metrics, as of now."""
        up = GaugeMetricFamily("flq_up", "Whether both Redis roles answer.")
        try:
            with self._lock:
                found = [
                    *self._runs(),
                    *self._clients_and_workers(),
                    *self._queues(),
                    *self._servers(),
                ]
            up.add_metric([], 1)
        except StoreUnavailable:
            found = []
            up.add_metric([], 0)
        yield up
        yield from found

    # Runs

    def _runs(self) -> list[Metric]:
        control = self.store.control
        living = control.runs.living()
        self._ledgers = {
            state.run_id: self._counted(state, self._ledgers.get(state.run_id, _Ledger()))
            for state in living
        }
        counted = [(state, self._ledgers[state.run_id]) for state in living]
        return [*_totals(counted), *_now(living), self._late(living), *self._judged(living)]

    def _counted(self, state: RunState, ledger: _Ledger) -> _Ledger:
        run = state.run_id
        manifest, sizes = self.store.control.versions.manifest(run), dict[int, int]()
        records, seen = self.store.control.history.records_from(run, ledger.seen)
        for record in records:
            segment = record.config_segment
            if segment not in sizes:
                sizes[segment] = self._update_nbytes(run, segment, manifest)
            ledger.add(record, sizes[segment])
        ledger.seen = seen
        for _, entry, event in self.store.control.events.read(
            {keyspace.events(run): ledger.cursor}, None
        ):
            ledger.cursor = entry
            ledger.healed += event["event"] == "healed"
        return ledger

    def _update_nbytes(self, run: str, segment: int, manifest: Manifest | None) -> int:
        """Bytes of an update's body, which are the same for all of a round."""
        try:
            encoding = codec.encoding(current_config(self.store, run, segment).update)
        except UnknownRun:
            return 0  # Deleted since we looked.
        return codec.encoded_nbytes(encoding, manifest) if manifest else 0

    def _late(self, living: list[RunState]) -> Metric:
        late = CounterMetricFamily(
            "flq_late_updates", "Updates that came after their round.", labels=["run"]
        )
        for state in living:
            late.add_metric(
                [escaping.line(state.name)],
                sum(self.store.control.receipts.late_counts(state.run_id).values()),
            )
        return late

    def _judged(self, living: list[RunState]) -> list[Metric]:
        judged = GaugeMetricFamily(
            "flq_test_metric", "The newest tested version's metrics.", labels=["run", "metric"]
        )
        validated = [
            GaugeMetricFamily(f"flq_validation_{name}", text, labels=["run", "metric"])
            for name, text in (
                ("metric", "The clients' validation of the newest version that has one, merged."),
                ("clients", "Clients that the metric is of."),
                ("examples", "Examples that the metric is of."),
            )
        ]
        waiting = GaugeMetricFamily(
            "flq_results_waiting", "Updates in the results list.", labels=["run"]
        )
        for state in living:
            tested = selection.test_metrics(self.store, state.run_id)
            for name, value in (tested[max(tested)] if tested else {}).items():
                judged.add_metric([escaping.line(state.name), escaping.curve_part(name)], value)
            labels = [escaping.line(state.name)]
            for name, numbers in self._ledgers[state.run_id].validation.items():
                # Records of earlier releases have no numbers of clients.
                for family, number in zip(validated, numbers, strict=False):
                    family.add_metric([*labels, escaping.curve_part(name)], number)
            waiting.add_metric(
                [escaping.line(state.name)], self.store.data.results.count(state.run_id)
            )
        return [judged, *validated, waiting]

    # Clients and workers, queues, memory

    def _clients_and_workers(self) -> list[Metric]:
        control = self.store.control
        known = control.clients.heartbeat_ages()
        alive = sum(map(bool, control.leases.get_many(map(keyspace.client_holder, known))))
        clients = GaugeMetricFamily(
            "flq_clients", "Known clients, by whether a worker serves them.", labels=["state"]
        )
        clients.add_metric(["alive"], alive)
        clients.add_metric(["gone"], len(known) - alive)
        workers = GaugeMetricFamily("flq_workers", "Living workers.", labels=["role"])
        roles = Counter(worker["role"] for worker in control.workers.living())
        for role in (identifiers.AGGREGATOR, identifiers.EVALUATOR, identifiers.POOL, "client"):
            workers.add_metric([role], roles[role])
        healer = GaugeMetricFamily("flq_healer_alive", "Whether a healer is at work.")
        healer.add_metric([], int(bool(control.leases.get(keyspace.HEALER))))
        return [clients, workers, healer]

    def _queues(self) -> list[Metric]:
        jobs = GaugeMetricFamily("flq_queue_jobs", "Jobs that wait.", labels=["queue"])
        shared = (keyspace.AGGREGATE_QUEUE, keyspace.EVALUATE_QUEUE, keyspace.POOL_QUEUE)
        for queue in shared:
            jobs.add_metric([queue], dispatch.lengths(self.store, [queue])[0])
        clients = [
            keyspace.client_queue(client) for client in self.store.control.clients.heartbeat_ages()
        ]
        jobs.add_metric(["flq-client-*"], sum(dispatch.lengths(self.store, clients)))
        return [jobs]

    def _servers(self) -> list[Metric]:
        used = GaugeMetricFamily(
            "flq_redis_used_bytes", "Memory in use, of all nodes.", labels=["role"]
        )
        limit = GaugeMetricFamily(
            "flq_redis_limit_bytes", "Memory there is; 0: not known.", labels=["role"]
        )
        servers = self.store.servers
        for role, client, url in (
            ("control", servers.control, servers.url),
            ("data", servers.data, servers.blob_url),
        ):
            facts = server_facts(client, url)
            used.add_metric([role], sum(node.used_bytes for node in facts))
            limit.add_metric([role], sum(node.limit_bytes for node in facts))
        return [used, limit]


def _verdict(reason: str) -> str:
    """First word of the reason of a rejection, or ``other``: each value is a time series."""
    verdict = reason.partition(":")[0]
    return verdict if verdict in _VERDICTS else "other"


def _totals(counted: list[tuple[RunState, _Ledger]]) -> list[Metric]:
    rounds = CounterMetricFamily("flq_rounds", "Ended rounds.", labels=["run", "outcome"])
    updates = CounterMetricFamily(
        "flq_updates", "Updates of ended rounds, by verdict.", labels=["run", "verdict"]
    )
    nbytes = CounterMetricFamily("flq_update_bytes", "Bytes of accepted updates.", labels=["run"])
    healed = CounterMetricFamily(
        "flq_healer_actions", "Repairs of the healer, as far as events are kept.", labels=["run"]
    )
    seconds = HistogramMetricFamily("flq_round_seconds", "Length of rounds.", labels=["run"])
    for state, ledger in counted:
        for outcome in OUTCOMES:
            rounds.add_metric([escaping.line(state.name), outcome], ledger.rounds[outcome])
        for verdict in _VERDICTS:
            updates.add_metric([escaping.line(state.name), verdict], ledger.updates[verdict])
        nbytes.add_metric([escaping.line(state.name)], ledger.nbytes)
        healed.add_metric([escaping.line(state.name)], ledger.healed)
        seconds.add_metric([escaping.line(state.name)], _cumulated(ledger.lengths), ledger.seconds)
    return [rounds, updates, nbytes, healed, seconds]


def _cumulated(lengths: Counter[float]) -> list[tuple[str, float]]:
    total, classes = 0, []
    for bound in (*BOUNDS_S, float("inf")):
        total += lengths[bound]
        classes.append(("+Inf" if bound == float("inf") else f"{bound:g}", float(total)))
    return classes


def _now(living: list[RunState]) -> list[Metric]:
    states = GaugeMetricFamily(
        "flq_run_state", "1 for the state the run is in.", labels=["run", "state"]
    )
    round_ = GaugeMetricFamily("flq_run_round", "The newest round.", labels=["run"])
    version = GaugeMetricFamily("flq_run_version", "The newest version.", labels=["run"])
    wanted = GaugeMetricFamily("flq_run_versions_wanted", "The version it ends at.", labels=["run"])
    for state in living:
        for name in STATES:
            states.add_metric([escaping.line(state.name), name], int(state.state == name))
        round_.add_metric([escaping.line(state.name)], state.round)
        wanted.add_metric([escaping.line(state.name)], state.rounds_wanted)
        if state.version is not None:
            version.add_metric([escaping.line(state.name)], state.version)
    return [states, round_, version, wanted]


def registry(store: Store) -> CollectorRegistry:
    """A registry of its own with everything; keep it, as it remembers what it has counted."""
    made = CollectorRegistry(auto_describe=False)
    made.register(RunsCollector(store))
    return made


def text(registry: CollectorRegistry) -> bytes:
    """Body of an answer of ``/metrics``, as ``CONTENT_TYPE``."""
    return generate_latest(registry)


def serve(store: Store, host: str, port: int) -> WSGIServer:
    """
    Answer scrapes from a thread of this process; ``shutdown`` of what is returned ends that.

    Raises:
        OSError: The address cannot be bound.
    """
    server, _ = start_http_server(port, host, registry(store))
    return server
