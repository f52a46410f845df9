"""
Published results, measured again: ``make reproduce``, about an hour on two cores.

    python -m benchmarks.reproduce [--quick | --more] [--data FOLDER] [--work FOLDER] [--output FILE]

The document is written after each run, so it may be interrupted at any time; called again, it goes on
where it was. ``--quick`` takes about three minutes and prints its document. The exit status is 1 when
a published number was not reached.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from benchmarks.harness.federation import ROOT
from benchmarks.reproduce import document
from benchmarks.reproduce.bench import Bench, check_data
from benchmarks.reproduce.jobs import Job, Results
from benchmarks.reproduce.plan import QUICK_TARGET, TARGETS, all_jobs
from fl_queue.errors import FLQueueError

WORK = ROOT / "benchmarks" / ".reproduce"
DOCUMENT = ROOT / "docs" / "results" / "reproduction.md"


def next_job(results: Results, quick: bool, more: bool = False) -> Job | None:
    """The first job that has not been measured; None when all have."""
    jobs = all_jobs(results, quick, more)
    return next((job for job in jobs if results.get(job) is None), None)


def measure(work: Path, data: str, quick: bool, output: Path | None, more: bool = False) -> int:
    """
    Measure what has not been measured, and write the document after each run.

    Args:
        work: Folder of the results, and of the runs in progress.
        data: Folder of the full MNIST; empty: the task's own.
        output: The document; None: print it at the end.
        more: Also what does not fit into an hour.

    Returns:
        How many published numbers were not reached.

    Raises:
        FLQueueError: The data is not there, or a run failed.
    """
    results = Results(work / "results")
    console = Console(stderr=True, highlight=False)
    if next_job(results, quick, more):
        check_data(data, "full")
        with Bench(work / "state", data) as bench:
            while job := next_job(results, quick, more):
                console.print(f"{job.key} ...", soft_wrap=True)
                measured = bench.measure(job)
                results.put(job, measured)
                bench.forget(job)
                console.print(document.describe(job, measured), soft_wrap=True)
                if output:
                    output.write_text(document.render(results, quick))
    text = document.render(results, quick)
    if output:
        output.write_text(text)
    else:
        print(text)
    missed = document.missed(results, (QUICK_TARGET,) if quick else TARGETS)
    console.print(f"not reached: {', '.join(missed) or 'none'}", soft_wrap=True)
    return len(missed)


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reproduce",
        description="Published results, measured again, and written beside the published numbers. "
        "Interrupted, it goes on where it was when it is called again.",
    )
    extent = parser.add_mutually_exclusive_group()
    extent.add_argument("--quick", action="store_true", help="a part, in about three minutes")
    extent.add_argument(
        "--more",
        action="store_true",
        help="also what does not fit into an hour: about three in all",
    )
    parser.add_argument(
        "--data",
        default="",
        metavar="FOLDER",
        help="folder with the four files of MNIST (train-images-idx3-ubyte.gz and so on); default: "
        "~/.cache/fl-queue/mnist, where they are downloaded",
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=WORK,
        metavar="FOLDER",
        help="results and runs in progress; remove it to measure all again; default: "
        f"{WORK.relative_to(ROOT)}",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help=f"the document; default: {DOCUMENT.relative_to(ROOT)}, with --quick it is printed",
    )
    arguments = parser.parse_args()
    output = arguments.output or (None if arguments.quick else DOCUMENT)
    data = str(Path(arguments.data).absolute()) if arguments.data else ""
    try:
        work, more = arguments.work.absolute(), arguments.more
        return 1 if measure(work, data, arguments.quick, output, more) else 0
    except FLQueueError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return exc.exit_code if hasattr(exc, "exit_code") else 1


if __name__ == "__main__":
    sys.exit(main())
