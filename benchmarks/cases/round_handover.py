"""
The hand-over between rounds, and what waiting costs: ``python -m benchmarks.cases.round_handover [--quick]``.

From the last update in the results list to the next round's job coming out of a client's queue, as
a client's worker would get it: a real aggregator in between, and fake clients. Then the processor
time of a federation that has nothing to do.
"""

from __future__ import annotations

import argparse
import time

from benchmarks.harness.fake_clients import OVERRIDES, Fakes
from benchmarks.harness.federation import Federation, children, cpu_s
from benchmarks.harness.table import markdown, median, percentile
from fl_queue.store import Store, keyspace

PARAMETERS = 200_000
CLIENTS = 4
PATIENCE_S = 60
IDLE_CLIENTS = 2


def next_job(store: Store, client: str) -> None:
    """
    Wait for a client's next job and take it out of its queue.

    Raises:
        TimeoutError: None came.
    """
    queue = f"rq:queue:{keyspace.client_queue(client)}"
    # A worker's own command; the timeout of the connection is shorter than a round may take.
    for _ in range(PATIENCE_S):
        if store.control.redis.blpop([queue], 1):
            return
    raise TimeoutError(f"no job in {queue} for {PATIENCE_S} s")


def await_receipts(store: Store, run: str, number: int, count: int) -> None:
    """
    Wait until so many updates of a round have been merged.

    Raises:
        TimeoutError: They have not.
    """
    until = time.monotonic() + PATIENCE_S
    while len(store.control.receipts.of_round(run, number)) < count:
        if time.monotonic() > until:
            raise TimeoutError(f"round {number} has not {count} updates after {PATIENCE_S} s")
        time.sleep(0.002)


def handovers(federation: Federation, count: int) -> tuple[list[float], list[float]]:
    """
    Seconds of ``count`` hand-overs, after five that warm up.

    Returns:
        Since the last update's push had returned, and since it was begun.
    """
    store, fakes = federation.store, Fakes(federation.store, CLIENTS)
    fakes.hold()
    run = federation.begin(
        "handover", count + 6, *OVERRIDES, f"task.parameters={PARAMETERS}",
        f"round.cohort={CLIENTS}",
    )  # fmt: skip
    first, last = fakes.clients[0], fakes.clients[-1]
    next_job(store, first)
    arrived, begun = [], []
    for number in range(1, count + 6):
        fakes.answer(run, number, fakes.clients[:-1])
        await_receipts(store, run, number, CLIENTS - 1)
        current = store.control.rounds.get(run, number)
        manifest = store.control.versions.manifest(run)
        assert current is not None
        assert manifest is not None
        element = fakes.element(run, current, manifest, last)
        before = time.perf_counter()
        fakes.push(run, current, *element)
        after = time.perf_counter()
        next_job(store, first)
        now = time.perf_counter()
        arrived.append(now - after)
        begun.append(now - before)
    return arrived[5:], begun[5:]


def idle_table(federation: Federation, seconds: float) -> str:
    """Processor seconds a minute of each process, with nothing to do."""
    pids = {
        f"{name} {what}": pid
        for name, process in federation.processes.items()
        for what, pid in [
            ("supervisor", process.pid),
            *(("worker", child) for child in children(process.pid)),
        ]
    }
    pids |= {f"{role} server": pid for role, pid in federation.redis.pids.items()}
    before = {name: cpu_s(pid) for name, pid in pids.items()}
    time.sleep(seconds)
    used = {name: (cpu_s(pid) - before[name]) * 60 / seconds for name, pid in pids.items()}
    rows = [[name, f"{value:.2f}"] for name, value in used.items()]
    rows.append(["all", f"{sum(used.values()):.2f}"])
    return markdown(("idle process", "processor s a minute"), rows)


def report(quick: bool = False) -> str:
    """Both tables."""
    with Federation(0, evaluator=True) as federation:
        found = handovers(federation, 20 if quick else 200)
    head = ("from the last update's push", "n", "median ms", "p99 ms", "most ms")
    rows = [
        [
            label,
            len(values),
            *(f"{1000 * value:.1f}" for value in (median(values), percentile(values, 0.99))),
            f"{1000 * max(values):.1f}",
        ]
        for label, values in zip(("done", "begun"), found, strict=True)
    ]
    with Federation(IDLE_CLIENTS, evaluator=True) as federation:
        time.sleep(1 if quick else 3)
        idle = idle_table(federation, 3 if quick else 20)
    return f"{markdown(head, rows)}\n{idle}"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="20 rounds, and idle for 3 s")
    print(report(parser.parse_args().quick))


if __name__ == "__main__":
    main()
