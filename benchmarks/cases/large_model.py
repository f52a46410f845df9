"""
A model of 1.2 GB: ``python -m benchmarks.cases.large_model [--quick]``.

300 M float32 parameters, two clients; training adds a constant. Redis is looked at meanwhile for
the largest value it holds: 512 MB is what it takes at most.
"""

from __future__ import annotations

import argparse
import threading

from benchmarks.harness.federation import Federation
from benchmarks.harness.table import markdown
from fl_queue.errors import StoreUnavailable
from fl_queue.store import Store

PARAMETERS = 300_000_000
CLIENTS = 2
ROUNDS = 2
LOOK_S = 0.5
MIB = 1 << 20


class Largest:
    """The largest value on the data server while this is entered. ``nbytes``: with its overhead."""

    def __init__(self, store: Store) -> None:
        self.nbytes = 0
        self._redis = store.data.redis
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, name="largest", daemon=True)

    def __enter__(self) -> Largest:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._done.wait(LOOK_S):
            try:
                for key in self._redis.scan_iter(count=1000):
                    self.nbytes = max(self.nbytes, self._redis.memory_usage(key, samples=0) or 0)
            except StoreUnavailable:
                continue  # It was busy: the next look will do.


def report(quick: bool = False) -> str:
    """The table."""
    size = 5_000_000 if quick else PARAMETERS
    with Federation(CLIENTS) as federation, Largest(federation.store) as largest:
        run = federation.begin("big", ROUNDS, f"task.parameters={size}", "train.timeout_s=900")
        timings = federation.finish_all(run)
        clients = max(federation.peak[name] for name in federation.peak if name.startswith("site"))
        aggregator = federation.peak["aggregator-1"]
    nbytes = 4 * size
    rows: list[list[object]] = [
        ["rounds committed", len(timings)],
        ["seconds of each", ", ".join(f"{timing.period:.1f}" for timing in timings)],
        ["a client's peak", f"{clients / MIB:.0f} MiB, {clients / nbytes:.2f} models"],
        ["the aggregator's peak", f"{aggregator / MIB:.0f} MiB, {aggregator / nbytes:.2f} models"],
        ["largest value in Redis", f"{largest.nbytes / MIB:.1f} MiB"],
    ]
    return markdown((f"{size / 1e6:g} M parameters, {CLIENTS} clients", ""), rows)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="5 M parameters")
    print(report(parser.parse_args().quick))


if __name__ == "__main__":
    main()
