"""
All benchmarks, printed and written to ``docs/results/benchmarks.md``: ``make bench``, about twenty minutes.

    python -m benchmarks [--quick] [--only NAME ...] [--data FOLDER] [--output FILE]

The exit status is 1 when one of them failed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.harness import document
from benchmarks.harness.federation import ROOT


def main() -> int:
    """Run them and write the document; returns the exit status."""
    names = [benchmark.name for benchmark in document.BENCHMARKS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="All benchmarks.")
    parser.add_argument("--quick", action="store_true", help="small sizes: does everything work?")
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", default=names)
    parser.add_argument("--data", type=Path, help="folder of MNIST; default: the excerpt")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "results" / "benchmarks.md")
    arguments = parser.parse_args()
    outcomes = []
    for benchmark in document.BENCHMARKS:
        if benchmark.name not in arguments.only:
            continue
        print(f"{benchmark.heading} ...", file=sys.stderr, flush=True)
        outcome = document.execute(benchmark, arguments.quick, arguments.data)
        print(f"\n{document.section(outcome)}", flush=True)
        outcomes.append(outcome)
        # After each: what is interrupted has been worth something.
        arguments.output.write_text(document.document(outcomes, arguments.quick))
    failed = [outcome.benchmark.name for outcome in outcomes if not outcome.is_good]
    print(f"{arguments.output}: {len(outcomes)} benchmarks, failed: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
