"""
Whole rounds beside the floor: ``python -m benchmarks.cases.rounds [--quick]``.

Training adds a constant, nothing is evaluated; the floor is measured before and after the run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

from benchmarks.cases import transfer_lower_bound
from benchmarks.harness.federation import Federation
from benchmarks.harness.table import markdown, median, spread

SIZES = (200_000, 1_660_000, 25_000_000, 125_000_000)
HEAD = (
    "parameters", "clients", "servers", "round s", "floor s", "ratio", "over the floor s",
    "client, models", "aggregator, models",
)  # fmt: skip


def row(
    size: int, clients: int, tcp: bool, one_server: bool, task: str = "AddConstant"
) -> list[str]:
    """One line of the table."""
    count = 8 if size < 10_000_000 else 4 if size < 100_000_000 else 2
    with Federation(clients, tcp=tcp, one_server=one_server) as federation:
        # The floor is of the data plane: its server keeps no append-only file.
        url = federation.redis.blob_url
        before = transfer_lower_bound.measure(url, 4 * size, clients, max(2, count // 2))
        federation.store.data.redis.flushall()
        run = federation.begin("bench", count + 1, f"task.parameters={size}", task=task)
        ours = [timing.period for timing in federation.finish(run)]
        federation.store.data.redis.flushall()
        after = transfer_lower_bound.measure(url, 4 * size, clients, max(2, count // 2))
        peak = federation.peak
    bare = before + after
    worst = max(value for name, value in peak.items() if name.startswith("site"))
    servers = f"{'TCP' if tcp else 'unix'}, {'one' if one_server else 'two'}"
    return [
        f"{size / 1e6:g} M", str(clients), servers, spread(ours), spread(bare),
        f"{median(ours) / median(bare):.2f}", f"{median(ours) - median(bare):.3f}",
        f"{worst / 4 / size:.2f} ({worst >> 20} MiB)",
        f"{peak['aggregator-1'] / 4 / size:.2f} ({peak['aggregator-1'] >> 20} MiB)",
    ]  # fmt: skip


def layouts(quick: bool) -> Iterator[tuple[int, int, bool, bool]]:
    """What is measured: parameters, clients, TCP, one server."""
    if quick:
        yield from ((size, 4, False, False) for size in SIZES[:2])
        return
    for size in SIZES:
        yield size, 4, False, False
    for size in SIZES[:3]:
        yield size, 8, False, False
    for size in SIZES[:3]:
        yield size, 4, True, False
        yield size, 4, False, True


def report(quick: bool = False) -> str:
    """The table."""
    rows = []
    for layout in layouts(quick):
        rows.append(row(*layout))
        print(markdown(HEAD, rows[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
    return markdown(HEAD, rows)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two small models on unix sockets")
    print(report(parser.parse_args().quick))


if __name__ == "__main__":
    main()
