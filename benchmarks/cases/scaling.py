"""
Round time against clients and against parameters: ``python -m benchmarks.cases.scaling [--quick]``.

Against clients, these are fake: one process pushes their updates one after the other, so what grows
is the servers', the aggregator's and that process's work. Against parameters, two real clients. The
exponent is that of a straight line through the logarithms of all points; what a round costs anyway
flattens it, so the slope of the last two points stands beside it.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.harness.fake_clients import OVERRIDES, Fakes
from benchmarks.harness.federation import Federation
from benchmarks.harness.table import markdown, median, spread

PARAMETERS = 100_000
COHORTS = (4, 16, 64, 256, 1024)
SIZES = (100_000, 1_000_000, 10_000_000, 50_000_000, 125_000_000)


def against_clients(cohorts: Sequence[int], count: int) -> list[list[float]]:
    """Seconds of ``count`` rounds with each number of clients."""
    found = []
    with Federation(0, evaluator=True) as federation:
        fakes = Fakes(federation.store, max(cohorts))
        fakes.hold()
        for cohort in cohorts:
            run = federation.begin(
                f"clients-{cohort}", count + 1, *OVERRIDES,
                f"task.parameters={PARAMETERS}", f"round.cohort={cohort}",
            )  # fmt: skip
            fakes.serve(run)
            found.append([timing.period for timing in federation.finish(run)])
    return found


def against_parameters(sizes: Sequence[int], count: int) -> list[list[float]]:
    """Seconds of ``count`` rounds with each size of the model."""
    found = []
    with Federation(2) as federation:
        for size in sizes:
            run = federation.begin(f"size-{size}", count + 1, f"task.parameters={size}")
            found.append([timing.period for timing in federation.finish(run)])
    return found


def exponents(sizes: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """``b`` of ``a * size**b``: fitted to all points, and between the last two."""
    logs = np.log(sizes), np.log(seconds)
    slope = float(np.polyfit(*logs, 1)[0])
    last = math.log(seconds[-1] / seconds[-2]) / math.log(sizes[-1] / sizes[-2])
    return slope, last


def table(
    head: str, sizes: Sequence[int], found: Sequence[Sequence[float]], show: Callable[[int], str]
) -> str:
    """Round time by size, with the exponents."""
    rows = [[show(size), spread(values)] for size, values in zip(sizes, found, strict=True)]
    fitted, last = exponents(sizes, [median(values) for values in found])
    rows.append(["exponent", f"{fitted:.2f} (last two: {last:.2f})"])
    return markdown((head, "round s, median (least-most)"), rows)


def report(quick: bool = False) -> str:
    """Both tables."""
    cohorts, sizes, count = ((4, 16), SIZES[:2], 1) if quick else (COHORTS, SIZES, 3)
    clients = against_clients(cohorts, count)
    parameters = against_parameters(sizes, count)
    return (
        table(f"fake clients of {PARAMETERS / 1e6:g} M parameters", cohorts, clients, str)
        + "\n"
        + table("parameters, 2 clients", sizes, parameters, lambda size: f"{size / 1e6:g} M")
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two points of each, one round")
    print(report(parser.parse_args().quick))


if __name__ == "__main__":
    main()
