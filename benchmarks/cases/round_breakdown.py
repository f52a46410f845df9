"""
Where a round's time goes: ``python -m benchmarks.cases.round_breakdown [--quick]``.

The jobs of a round are called one after the other in this process, without RQ and with nothing
beside them, on private servers; a stopwatch stands around the functions of each step. What RQ, forking
and the processor's other work add is seen in whole rounds of real workers.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import inspect
import os
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import blake3

from benchmarks.harness.federation import Federation, servers
from benchmarks.harness.table import markdown, median
from fl_queue.aggregation import exact_sum
from fl_queue.client.resident import Resident
from fl_queue.client.site import WorkerSettings
from fl_queue.config import loading
from fl_queue.coordinator.rounds import lifecycle, runs
from fl_queue.models.model_store import ModelStore
from fl_queue.protocol import identifiers
from fl_queue.store import RunState, Store, keyspace
from fl_queue.store.embedded.server_pair import EmbeddedRedis
from fl_queue.store.jobs import dispatch
from fl_queue.store.jobs.dispatch import JobTicket
from fl_queue.training import determinism
from workers import site_worker

CLIENTS = 4
ALLOW = ("benchmarks.harness.noop_tasks:*",)
#: No process extends the leases of these fake clients.
LEASE_S = 3600.0
#: Parameters of a model that costs nothing to move: what is left is the cost of any round.
SMALL = 1000
REST = "everything else"
BESIDE = "fsync of the checkpoint (beside the chunks)"

#: What a step is called, and its functions; time in one of them inside another is not counted twice.
STEPS = (
    ("read chunks", "fl_queue.store.data.chunks:Chunks.iterate"),
    ("read chunks", "fl_queue.store.data.chunks:Chunks.read_into"),
    ("write the model to the cache", "fl_queue.models.host_cache:HostCache.fetch"),
    ("build the model, load the base", "fl_queue.client.local_update:built"),
    ("train", "benchmarks.harness.noop_tasks:AddConstant.train"),
    ("describe the environment", "fl_queue.training.determinism:environment"),
    ("difference, encode", "fl_queue.client.local_update:UpdateTensors.pieces"),
    ("difference, encode", "fl_queue.protocol.codecs.codec:encode_piece"),
    ("write the outbox", "fl_queue.client.outbox:write"),
    ("write chunks", "fl_queue.store.data.chunks:Chunks.put"),
    ("push the element", "fl_queue.store.data.results:Results.push"),
    ("take the element", "fl_queue.store.data.taken:TakenLists.take"),
    ("validate", "fl_queue.protocol.message:unpack"),
    ("validate", "fl_queue.protocol.message:check_body"),
    ("decode, sum", "fl_queue.aggregation.merge:UpdateMerger.add"),
    ("receipt", "fl_queue.store.control.receipts:Receipts.add"),
    ("compute the next model", "fl_queue.aggregation.merge:UpdateMerger.next_model"),
    ("write the checkpoint", "fl_queue.models.checkpoint:drafted"),
    (BESIDE, "fl_queue.models.checkpoint:UncommittedCheckpoint.sync"),
    ("name the checkpoint", "fl_queue.models.checkpoint:UncommittedCheckpoint.keep"),
    ("commit", "fl_queue.store.control.rounds:Rounds.end"),
    ("open the next round", "fl_queue.coordinator.rounds.lifecycle:advance"),
    ("clean up", "fl_queue.coordinator.aggregator.round_commit:RoundCommit._clean_up"),
)  # fmt: skip
HASH = "BLAKE3"


class Cost(NamedTuple):
    """What a step costs, seconds: ``wall`` by the clock, ``busy`` of the processor (not the servers')."""

    wall: float = 0.0
    busy: float = 0.0

    def plus(self, other: Cost, times: float = 1.0) -> Cost:
        """The sum with another cost, that one multiplied."""
        return Cost(self.wall + times * other.wall, self.busy + times * other.busy)


#: Step -> cost, of one side: ``client`` or ``aggregator``.
Costs = dict[str, Cost]


def _now() -> Cost:
    return Cost(time.perf_counter(), time.thread_time())


class Stopwatch:
    """
    Costs by step; what one step spends in another counts for the other alone.

    Args:
        clock: What has been spent so far, by this thread where it is about the processor.
    """

    def __init__(self, clock: Callable[[], Cost] = _now) -> None:
        self._clock = clock
        self.costs: defaultdict[str, Cost] = defaultdict(Cost)
        self._inner = threading.local()

    @contextmanager
    def step(self, label: str) -> Iterator[None]:
        """Count the time until the end of the block for a step."""
        stack: list[Cost] = self._inner.__dict__.setdefault("stack", [])
        stack.append(Cost())
        began = self._clock()
        try:
            yield
        finally:
            spent = self._clock().plus(began, -1)
            self.costs[label] = self.costs[label].plus(spent.plus(stack.pop(), -1))
            if stack:
                stack[-1] = stack[-1].plus(spent)

    def timed(self, label: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function with its time counted, that of what it yields and of entering it too."""

        @functools.wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            with self.step(label):
                result = function(*args, **options)
            if isinstance(result, Iterator):
                return self._items(label, result)
            if inspect.isgeneratorfunction(inspect.unwrap(function)):  # of a context manager
                return self._entered(label, result)
            return result

        return call

    def _items(self, label: str, items: Iterator[Any]) -> Iterator[Any]:
        end = object()
        while True:
            with self.step(label):
                item = next(items, end)
            if item is end:
                return
            yield item

    @contextmanager
    def _entered(self, label: str, manager: AbstractContextManager[Any]) -> Iterator[Any]:
        with ExitStack() as stack:
            with self.step(label):
                value = stack.enter_context(manager)
            yield value


class _Hasher:
    """A BLAKE3 hasher with its time counted."""

    def __init__(self, watch: Stopwatch, data: Any) -> None:
        self._watch = watch
        with watch.step(HASH):
            self._hasher = blake3.blake3(data)

    def update(self, data: Any) -> None:
        with self._watch.step(HASH):
            self._hasher.update(data)

    def hexdigest(self) -> str:
        return self._hasher.hexdigest()


@contextmanager
def watched(watch: Stopwatch, steps: tuple[tuple[str, str], ...] = STEPS) -> Iterator[None]:
    """
    Have a stopwatch around the steps' functions and every hash.

    Raises:
        AttributeError: A function named in ``steps`` does not exist; update ``steps``.
    """
    with ExitStack() as undo:
        for label, place in steps:
            module, _, path = place.partition(":")
            *outer, name = path.split(".")
            owner = functools.reduce(getattr, outer, importlib.import_module(module))
            _put(undo, owner, name, watch.timed(label, getattr(owner, name)))
        for known, using in list(sys.modules.items()):
            if known.startswith("fl_queue.") and getattr(using, "blake3", None) is blake3.blake3:
                _put(undo, using, "blake3", lambda data=b"": _Hasher(watch, data))
        yield


def _put(undo: ExitStack, owner: Any, name: str, new: Any) -> None:
    undo.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, new)


class Walk:
    """
    A run whose jobs are called here, in order.

    Args:
        redis: Private servers.
        folder: State folders of the clients and of the aggregator are made in it.
        parameters: Of the model.
        clients: The cohort.
    """

    def __init__(self, redis: EmbeddedRedis, folder: Path, parameters: int, clients: int) -> None:
        self.redis, self.folder = redis, folder
        self.store = Store.open(redis.url, redis.blob_url, folder)
        self.clients = [f"site-{number + 1}" for number in range(clients)]
        for client in self.clients:
            self.store.control.leases.hold(keyspace.client_holder(client), client, LEASE_S, {})
        loaded = loading.load(
            None,
            (
                "run.task=benchmarks.harness.noop_tasks:AddConstant",
                "run.preflight=off",  # Jobs are answered by hand here.
                f"task.parameters={parameters}",
                f"round.cohort={clients}",
                f"clients.active_s={LEASE_S}",
                "round.deadline_s=900",
            ),
            environ={},
        )
        self.run = runs.start_run(self.store, "where", loaded, 1000).run_id
        lifecycle.advance(self.store, self.run)

    def round(self) -> dict[str, Costs]:
        """
        Walk through the open round.

        Returns:
            Of ``client``, one on average, and of ``aggregator``, the whole job.
        """
        state = self.store.control.runs.get(self.run)
        assert state is not None
        tickets = dispatch.tickets(self.store, self.run, state.round)
        aggregating = tickets.pop(identifiers.AGGREGATOR)
        self._restore(state)
        clients = [self._call(ticket) for ticket in tickets.values()]
        mean: defaultdict[str, Cost] = defaultdict(Cost)
        for costs in clients:
            for label, cost in costs.items():
                mean[label] = mean[label].plus(cost, 1 / len(clients))
        return {"client": dict(mean), "aggregator": self._call(aggregating)}

    def _restore(self, state: RunState) -> None:
        """Do what the healer would: see that the base is on the data server."""
        manifest = self.store.control.versions.manifest(self.run)
        if manifest is not None:
            chunk_bytes = runs.current_config(self.store, self.run).redis.chunk_bytes
            folder = self.folder / identifiers.AGGREGATOR
            ModelStore(self.store, self.run, chunk_bytes, folder).restore(state.digest, manifest)

    def _call(self, ticket: JobTicket) -> Costs:
        """Do a job as its worker would."""
        is_client = ticket.who in self.clients
        site = WorkerSettings(
            self.redis.url,
            self.redis.blob_url,
            self.folder / ticket.who,
            ticket.who if is_client else "",
            allow=ALLOW,
            min_examples=1,
        )
        module, _, name = ticket.function.rpartition(".")
        function = getattr(importlib.import_module(module), name)
        watch = Stopwatch()
        # Progress lines of the job belong in its worker's log.
        with (
            Path(os.devnull).open("w") as nowhere,
            redirect_stdout(nowhere),
            _environment({**site.to_environ(), "RQ_JOB_ID": ticket.job}),
            _computed_here(),
            watched(watch),
            watch.step(REST),
        ):
            function(ticket.run, ticket.number)
        return dict(watch.costs)


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _computed_here() -> Iterator[None]:
    """Compute the jobs of clients in this process, where the steps are watched; it has no fork server."""
    asked = site_worker.ask
    try:
        site_worker.ask = lambda request, report: Resident(WorkerSettings.from_environ()).handle(
            request, report
        )
        yield
    finally:
        site_worker.ask = asked


def walked(parameters: int, clients: int, count: int) -> dict[str, Costs]:
    """
    Median costs of a training round, after one that warms up.

    Args:
        count: Rounds to measure, 1 or more.
    """
    determinism.preload()
    exact_sum.warm_up()
    with servers() as redis, tempfile.TemporaryDirectory(prefix="flq-where-") as folder:
        walk = Walk(redis, Path(folder), parameters, clients)
        found = [walk.round() for _ in range(count + 2)][2:]  # The first makes version 0.
        walk.store.close()
    return {side: _medians([each[side] for each in found]) for side in ("client", "aggregator")}


def _medians(rounds_: list[Costs]) -> Costs:
    none = Cost()
    return {
        label: Cost(
            median([costs.get(label, none).wall for costs in rounds_]),
            median([costs.get(label, none).busy for costs in rounds_]),
        )
        for label in dict.fromkeys(label for costs in rounds_ for label in costs)
    }


def steps_table(found: dict[str, Costs], nbytes: int, clients: int) -> str:
    """Costs in the order of ``STEPS``, and GB/s of the updates each side deals with."""
    order = dict.fromkeys([*(label for label, _ in STEPS), HASH, REST])
    rows = [
        [label, *_cells(found, label)]
        for label in order
        if any(label in costs for costs in found.values())
    ]
    whole, rates = ["**the whole job**"], ["GB/s of updates"]
    for side, moved in (("client", nbytes), ("aggregator", nbytes * clients)):
        total = Cost()
        for label, cost in found[side].items():
            # The clock runs on while the disk is waited for beside.
            total = total.plus(cost._replace(wall=0.0) if label == BESIDE else cost)
        whole += [f"**{value:.3f}**" for value in total]
        rates += [f"{moved / value / 1e9:.2f}" for value in total]
    head = ("a client, s", "of the processor", f"the aggregator with {clients}, s")
    return markdown(("step", *head, "of the processor"), [*rows, whole, rates])


def _cells(found: dict[str, Costs], label: str) -> list[str]:
    return [
        f"{value:.4f}" if label in found[side] else ""
        for side in ("client", "aggregator")
        for value in found[side].get(label, Cost())
    ]


def live_table(sizes: tuple[int, ...], clients: int, count: int) -> str:
    """Whole rounds of real workers: seconds from the opening to each milestone."""
    rows = []
    with Federation(clients) as federation:
        for size in sizes:
            run = federation.begin(f"live-{size}", count + 1, f"task.parameters={size}")
            timings = federation.finish(run)
            milestones = (
                [timing.last_update for timing in timings],
                [timing.committed for timing in timings],
                [timing.period for timing in timings],
            )
            rows.append([f"{size / 1e6:g} M", *(f"{median(values):.3f}" for values in milestones)])
            federation.store.data.redis.flushall()
    return markdown(("parameters", "last update merged", "committed", "next round open"), rows)


def report(quick: bool = False) -> str:
    """Both tables."""
    parameters, count = (400_000, 1) if quick else (25_000_000, 3)
    found = walked(parameters, CLIENTS, count)
    steps = steps_table(found, 4 * parameters, CLIENTS)
    sizes = (SMALL,) if quick else (SMALL, parameters)
    live = live_table(sizes, CLIENTS, 2 if quick else 4)
    return (
        f"Steps of a round of {parameters / 1e6:g} M parameters, one after the other:\n\n{steps}\n"
        f"Whole rounds of {CLIENTS} real clients, seconds after the opening:\n\n{live}"
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small models, few rounds")
    print(report(parser.parse_args().quick))


if __name__ == "__main__":
    main()
