"""
Simulations: ``python -m benchmarks.cases.simulation [--quick] [--data FOLDER]``.

MNIST 2NN with ten of a hundred clients, beside a bare PyTorch loop with as many processes, before and
after. Then 10,000 virtual clients whose training costs nothing, and how long a round of 100,000
takes to open. Start-up is left out everywhere.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.cases import pytorch_fedavg
from benchmarks.harness.federation import ROOT, Timing, servers, timings
from benchmarks.harness.table import markdown, median, spread
from fl_queue.coordinator.rounds import runs
from fl_queue.store import Store

EXCERPT = ROOT / "fl_queue" / "data"
CONFIG = ROOT / "config" / "mnist-2nn-100.toml"
CLIENTS, COHORT = 100, 10
PROCESSES = 2
PATIENCE_S = 500


def simulate(count: int, config: Path, *overrides: str) -> list[Timing]:
    """The rounds of ``fl-queue start-round``, but for the first one, which warms up."""
    settings = (*overrides, f"clients.processes={PROCESSES}", "run.evaluate_every=0")
    options = [part for setting in settings for part in ("--set", setting)]
    with servers() as redis, Store.open(redis.url, redis.blob_url, redis.state_dir) as store:
        done = subprocess.run(
            [sys.executable, "-m", "fl_queue", "start-round", str(config), "--run", "bench",
             "--rounds", str(count + 1), *options],
            cwd=ROOT,
            env={**os.environ, "FLQ_STATE_DIR": str(redis.state_dir)},
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"start-round ended with {done.returncode}: {done.stderr[-500:]}")
        return timings(store, runs.find_run(store, "bench").run_id)[1:]


def beside_bare(data: Path | None, count: int) -> str:
    """MNIST 2NN, ours and bare."""
    source = ["data.source=full", f"data.dir={data}"] if data else ["data.source=excerpt"]
    half = max(1, count // 2)
    loop = pytorch_fedavg.measure(data or EXCERPT, CLIENTS, COHORT, half, PROCESSES)
    ours = [timing.period for timing in simulate(count, CONFIG, *source)]
    loop += pytorch_fedavg.measure(data or EXCERPT, CLIENTS, COHORT, half, PROCESSES)
    images = "600 images" if data else "100 images (the excerpt)"
    rows = [
        ["bare PyTorch", spread(loop), ""],
        ["`fl-queue start-round`", spread(ours), f"{median(ours) / median(loop):.2f}"],
    ]
    head = (f"{CLIENTS} clients of {images}, {COHORT} a round", f"round s, {count} rounds", "ratio")
    return markdown(head, rows)


def trivial(clients: int, cohort: int, parameters: int, count: int) -> list[Timing]:
    """Rounds of virtual clients that add a constant."""
    return simulate(
        count,
        ROOT / "config" / "default.toml",
        "run.task=benchmarks.harness.noop_tasks:AddConstant",
        f"task.parameters={parameters}",
        "clients.kind=simulation",
        f"clients.count={clients}",
        f"round.cohort={cohort}",
    )


def many_clients(quick: bool) -> str:
    """Updates a second, and the time to open a round."""
    count, cohort = (200, 50) if quick else (10_000, 1000)
    many = 1000 if quick else 100_000
    found = trivial(count, cohort, 200_000, 1 if quick else 3)
    period = median([timing.period for timing in found])
    opening = [
        timing.period - timing.committed
        for timing in trivial(many, cohort, 1000, 1 if quick else 4)
    ]
    rows = [
        [f"{count} clients, {cohort} a round, 0.2 M parameters: round", f"{period:.2f} s"],
        ["the same: updates", f"{cohort / period:.0f} a second"],
        [f"{many} clients, {cohort} a round: to open the next round", f"{spread(opening)} s"],
    ]
    return markdown(("virtual clients, trivial training", ""), rows)


def report(quick: bool = False, data: Path | None = None) -> str:
    """Both tables. Args: ``data``: folder of the whole of MNIST; None: the excerpt."""
    return f"{beside_bare(data, 5 if quick else 50)}\n{many_clients(quick)}"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="5 rounds, hundreds of clients")
    parser.add_argument("--data", type=Path, help="folder of MNIST; default: the excerpt")
    arguments = parser.parse_args()
    print(report(arguments.quick, arguments.data))


if __name__ == "__main__":
    main()
