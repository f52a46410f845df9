"""
Memory against clients: ``python -m benchmarks.cases.memory [--quick]``.

The aggregator is real; the clients are one process that pushes an update for each, waiting where a
client would wait. Redis may hold 64 MiB of unmerged updates.
"""

from __future__ import annotations

import argparse

from benchmarks.harness.fake_clients import OVERRIDES, Fakes
from benchmarks.harness.federation import Federation
from benchmarks.harness.table import markdown, median

PARAMETERS = 1_660_000
UNMERGED_MIB = 64
ROUNDS = 2
MIB = 1 << 20


def measure(clients: int) -> tuple[int, int, float]:
    """Peaks of the aggregator's work-horses and of the data server, bytes; median seconds a round."""
    with Federation(0, evaluator=True) as federation:
        fakes = Fakes(federation.store, clients)
        fakes.hold()
        run = federation.begin(
            "memory", ROUNDS + 1, *OVERRIDES, f"task.parameters={PARAMETERS}",
            f"round.cohort={clients}", f"redis.unmerged_bytes={UNMERGED_MIB * MIB}",
        )  # fmt: skip
        fakes.serve(run)
        periods = [timing.period for timing in federation.finish(run)]
        data = federation.store.data.redis.info("memory")["used_memory_peak"]
        return federation.peak["aggregator-1"], int(data), median(periods)


def report(quick: bool = False) -> str:
    """The table, and the ratio of the last line to the first."""
    rows, found = [], []
    for clients in (4, 16) if quick else (4, 512):
        aggregator, data, seconds = measure(clients)
        found.append((aggregator, data))
        rows.append(
            [clients, f"{aggregator / MIB:.0f}", f"{data / MIB:.0f}", f"{seconds:.2f}"],
        )
    ratios = [last / first for first, last in zip(found[0], found[-1], strict=True)]
    rows.append(["ratio", *(f"{ratio:.2f}" for ratio in ratios), ""])
    head = ("updates a round", "aggregator, peak MiB", "data server, peak MiB", "round s")
    return markdown(head, rows)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="4 and 16 clients")
    print(report(parser.parse_args().quick))


if __name__ == "__main__":
    main()
