"""
All benchmarks one after the other, and the document that is made of what they print.

Each runs in a process of its own: what one leaves in memory is no other's, and one that fails or
hangs is reported in its place.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness import environment
from benchmarks.harness.federation import ROOT

#: A benchmark that takes longer hangs.
PATIENCE_S = 900
#: Then it is interrupted, and killed after so much more.
INTERRUPTED_S = 60
_ERROR_LINES = 15


@dataclass(frozen=True)
class Benchmark:
    """A module of this package that prints Markdown. Args: ``takes_data``: it has ``--data``."""

    name: str
    heading: str
    takes_data: bool = False


BENCHMARKS = (
    Benchmark("rounds", "Whole rounds beside the floor"),
    Benchmark("round_breakdown", "Where a round's time goes"),
    Benchmark("round_handover", "From one round to the next, and idling"),
    Benchmark("resident", "Data that are read once"),
    Benchmark("exact_sum", "The exact sum"),
    Benchmark("secure_rounds", "Masks of secure sums"),
    Benchmark("inversion", "An image out of an update"),
    Benchmark("regression", "A regression"),
    Benchmark("trees", "A boosted tree"),
    Benchmark("memory", "Memory against clients"),
    Benchmark("large_model", "A model of 1.2 GB"),
    Benchmark("adapters", "Adapters on a frozen base"),
    Benchmark("many_runs", "Many runs"),
    Benchmark("simulation", "Simulations", takes_data=True),
    Benchmark("scaling", "Growth"),
    Benchmark("codecs", "Fewer bytes", takes_data=True),
    Benchmark("security_overhead", "TLS, ACL and signatures"),
    Benchmark("startup", "Start-up"),
)


@dataclass(frozen=True)
class Outcome:
    """
    What became of a benchmark.

    Args:
        command: The one that ran it, as a person types it.
        text: Markdown: its tables, or its last words.
        seconds: It took.
        is_good: Whether it ended well.
    """

    benchmark: Benchmark
    command: str
    text: str
    seconds: float
    is_good: bool


def execute(
    benchmark: Benchmark, quick: bool, data: Path | None, patience_s: float = PATIENCE_S
) -> Outcome:
    """
    Run one benchmark in a process of its own.

    Args:
        data: Folder of the whole of MNIST; None: the excerpt.
        patience_s: It is ended after this time, and has failed.
    """
    options = shown = ["--quick"] if quick else []
    if benchmark.takes_data and data is not None:
        options, shown = [*options, "--data", str(data.absolute())], [*shown, "--data FOLDER"]
    module = f"benchmarks.cases.{benchmark.name}"
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", module, *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    in_time = True
    try:
        printed, errors = process.communicate(timeout=patience_s)
    except subprocess.TimeoutExpired:
        in_time = False  # Whatever becomes of it: an early interrupt may go unheard.
        printed, errors = _end(process)
        errors += f"\nended after {patience_s:g} s"
    command = " ".join(["python -m", module, *shown])
    is_good = in_time and process.returncode == 0
    text = printed.strip() if is_good else _failure(process.returncode, errors)
    return Outcome(benchmark, command, text, time.monotonic() - began, is_good)


def _end(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Interrupt it, so that it removes the gigabytes it may have in a folder; else kill it."""
    process.send_signal(signal.SIGINT)
    try:
        return process.communicate(timeout=INTERRUPTED_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.communicate()


def _failure(status: int, errors: str) -> str:
    last = "\n".join(errors.strip().splitlines()[-_ERROR_LINES:])
    return f"**Failed** (exit status {status}):\n\n```\n{last}\n```"


def document(outcomes: Sequence[Outcome], quick: bool) -> str:
    """The whole document, Markdown."""
    parts = ["# Benchmarks\n", _introduction(quick), environment.table(), *map(section, outcomes)]
    return "\n".join(parts)


def section(outcome: Outcome) -> str:
    """A benchmark's part of the document."""
    return (
        f"## {outcome.benchmark.heading}\n\n"
        f"`{outcome.command}`, {outcome.seconds:.0f} s\n\n{outcome.text}\n"
    )


def _introduction(quick: bool) -> str:
    small = "\nThese are the small sizes of `--quick`: they show that everything works.\n"
    return (
        "Written by `make bench`. Every figure is measured beside what it is compared with, in the"
        " same run; other work on the machine moves all of them, and the ratios least. Medians, with"
        f" the range in brackets. `make bench-peers` compares with Flower.\n{small if quick else ''}"
    )
