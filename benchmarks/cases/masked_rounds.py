"""
Whole secure rounds beside signed ones in clear: ``python -m benchmarks.cases.masked_rounds [--quick]``.

One federation of four sites with mutual TLS, a Redis user for each client, signatures and enrolment. Runs in clear
and secure ones take turns, a few rounds each, so that other work on the machine meets all of them.
"""

from __future__ import annotations

import argparse

from benchmarks.cases.security_overhead import CLIENTS, Secured
from benchmarks.harness.table import markdown, median, spread

SIZES = (200_000, 1_660_000, 25_000_000)
SIGNED = ("security.require_enrolment=true", "aggregation.weighting=uniform")
MASKED = (*SIGNED, "secure.enabled=true")
#: Name of a way -> its overrides; the first one is what the others are held against.
WAYS = {
    "signed, in clear": SIGNED,
    "secure, 32 bits": (*MASKED, "secure.bits=32"),
    "secure, 32 bits, no confirm": (*MASKED, "secure.bits=32", "secure.confirm=false"),
    "secure, 64 bits": MASKED,
}


def rounds_table(sizes: tuple[int, ...], turns: int) -> str:
    """Duration of rounds of each way, and its ratio to those in clear."""
    found: dict[tuple[int, str], list[float]] = {}
    with Secured(CLIENTS) as federation:
        for size in sizes:
            for turn in range(turns):
                for number, (way, overrides) in enumerate(WAYS.items()):
                    run = federation.begin(
                        f"way-{number}-{size}-{turn}",
                        7 if size < 10_000_000 else 3,
                        f"task.parameters={size}",
                        *overrides,
                    )
                    periods = [timing.period for timing in federation.finish(run)]
                    found.setdefault((size, way), []).extend(periods)
                    federation.store.data.redis.flushall()
    rows = []
    for size in sizes:
        plain = median(found[size, next(iter(WAYS))])
        for way in WAYS:
            periods = found[size, way]
            ratio = f"{median(periods) / plain:.2f}"
            rows.append([f"{size / 1e6:g} M", way, spread(periods), ratio])
    return markdown(("parameters", "way", "round s", "ratio of medians"), rows)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the two small models, once")
    quick = parser.parse_args().quick
    print(rounds_table(SIZES[:2] if quick else SIZES, 1 if quick else 3))


if __name__ == "__main__":
    main()
