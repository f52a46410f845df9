"""
Many runs on two aggregator workers: ``python -m benchmarks.cases.many_runs [--quick]``.

Ten runs train at once with the same four clients; then one run alone, beside nine idle ones, and
alone again. An idle run has an open round that waits for clients who never answer.
"""

from __future__ import annotations

import argparse
import time

from benchmarks.harness.fake_clients import OVERRIDES, Fakes
from benchmarks.harness.federation import Federation
from benchmarks.harness.table import markdown, spread
from fl_queue.coordinator.operations import controls

RUNS = 10
CLIENTS = 4
PARAMETERS = 200_000
SETTINGS = (f"task.parameters={PARAMETERS}",)
PATIENCE_S = 120


def at_once(federation: Federation, count: int) -> str:
    """Ten runs of ``count`` rounds, begun together: a table with the updates a second."""
    began = time.monotonic()
    runs = [federation.begin(f"run-{number}", count, *SETTINGS) for number in range(RUNS)]
    ends = []
    for run in runs:
        federation.finish(run)
        ends.append(time.monotonic() - began)
    updates = RUNS * count * CLIENTS
    row = [RUNS, count, len(ends), f"{ends[-1]:.1f}", f"{updates / ends[-1]:.0f}"]
    return markdown(("runs at once", "rounds", "completed", "all done s", "updates/s"), [row])


def idle_runs(federation: Federation, fakes: Fakes) -> list[str]:
    """
    Nine runs whose open rounds wait for fake clients; the real ones have answered.

    Raises:
        TimeoutError: The real ones have not.
    """
    fakes.hold()
    size = CLIENTS + len(fakes.clients)
    settings = (*SETTINGS, *OVERRIDES, f"round.cohort={size}")
    runs = [federation.begin(f"idle-{number}", 1, *settings) for number in range(RUNS - 1)]
    until = time.monotonic() + PATIENCE_S
    while any(len(federation.store.control.receipts.of_round(run, 1)) < CLIENTS for run in runs):
        if time.monotonic() > until:
            raise TimeoutError(f"idle runs were not reached in {PATIENCE_S} s")
        time.sleep(0.1)
    fakes.leave()  # The measured run is to have the real clients.
    return runs


def beside_idle(federation: Federation, count: int) -> str:
    """Round time of one run alone, beside nine idle ones, and alone again."""

    def measure(name: str) -> list[float]:
        run = federation.begin(name, count + 1, *SETTINGS)
        return [timing.period for timing in federation.finish(run)]

    before = measure("before")
    idle = idle_runs(federation, Fakes(federation.store, CLIENTS))
    beside = measure("beside")
    for run in idle:
        controls.cancel(federation.store, run.rpartition("-")[0])
    after = measure("after")
    rows = [["alone", spread(before + after)], [f"beside {len(idle)} idle runs", spread(beside)]]
    return markdown(("one run", "round s, median (least-most)"), rows)


def report(quick: bool = False) -> str:
    """Both tables."""
    with Federation(CLIENTS, aggregators=2, evaluator=True) as federation:
        together = at_once(federation, 2 if quick else 5)
        return f"{together}\n{beside_idle(federation, 2 if quick else 8)}"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two rounds each")
    print(report(parser.parse_args().quick))


if __name__ == "__main__":
    main()
