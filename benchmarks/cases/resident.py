"""
Rounds on data that are read once: ``python -m benchmarks.cases.resident [--quick]``.

Two sites train on a table each. A round is compared with the training alone, as the sites' own clocks measured it in the
same round; once with training processes that stay, once with a fresh one for each job.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.harness.federation import Federation
from benchmarks.harness.table import markdown, median, spread
from fl_queue.protocol.records import Receipt

SITES = 2
COLUMNS = 30
ROWS, QUICK_ROWS = 280_000, 5_000
ROUNDS = 6
#: Seconds between two looks at the receipts of a round.
LOOK_S = 0.005
HEAD = (
    "rows x columns", "training processes", "first round s", "later round s", "training alone s", "ratio",
)  # fmt: skip


def write_table(folder: Path, rows: int) -> None:
    """A table of two classes with ``COLUMNS`` features, as ``train.csv``."""
    random = np.random.default_rng(7)
    values = random.normal(size=(rows, COLUMNS))
    labels = (values[:, 0] + random.normal(size=rows) > 0).astype(int)
    names = ",".join(f"f{number}" for number in range(COLUMNS))
    path = folder / "train.csv"
    np.savetxt(
        path,
        np.column_stack([values, labels]),
        fmt=["%.5f"] * COLUMNS + ["%d"],
        delimiter=",",
        header=f"{names},label",
        comments="",
    )


def overrides(rounds: int) -> tuple[str, ...]:
    """Config of a run on that table."""
    features = ",".join(f"f{number}" for number in range(COLUMNS))
    return (
        "run.task=csv",
        f"run.rounds={rounds}",
        "run.evaluate_every=0",
        "data.partition=site",
        "train.epochs=1",
        "train.batch_size=1024",
        "task.label=label",
        "task.classes=0,1",
        f"task.features={features}",
        f"task.means=[{', '.join(['0.0'] * COLUMNS)}]",
        f"task.stds=[{', '.join(['1.0'] * COLUMNS)}]",
        "aggregation.buffer_limit=1e18",
    )


def receipts(federation: Federation, run: str) -> dict[tuple[int, str], Receipt]:
    """(round, client) -> receipt, until the run has ended; those of ended rounds are removed."""
    found: dict[tuple[int, str], Receipt] = {}
    control = federation.store.control
    while (state := control.runs.get(run)) is not None and state.active:
        for client, receipt in control.receipts.of_round(run, state.round).items():
            found[state.round, client] = receipt
        time.sleep(LOOK_S)
    return found


def row(data: Path, rows: int, trainer_jobs: int) -> list[str]:
    """One line of the table. Args: ``trainer_jobs``: as the option of ``fl-queue worker client``."""
    with Federation(SITES, data=data, trainer_jobs=trainer_jobs) as federation:
        run = federation.begin("table", ROUNDS, *overrides(ROUNDS), task="")
        seen = receipts(federation, run)
        timings = federation.finish_all(run)
    trained = [receipt for (number, _), receipt in seen.items() if number > 1 and receipt.train_s]
    alone = [receipt.train_s for receipt in trained]
    later = [timing.period for timing in timings[1:]]
    return [
        f"{rows} x {COLUMNS}",
        "stay" if trainer_jobs == 0 else "fresh",
        f"{timings[0].period:.2f}",
        spread(later, 2),
        spread(alone, 2),
        f"{median(later) / median(alone):.1f}",
    ]


def report(quick: bool = False) -> str:
    """The table."""
    rows = QUICK_ROWS if quick else ROWS
    with tempfile.TemporaryDirectory(prefix="flq-bench-") as folder:
        write_table(Path(folder), rows)
        found = []
        for trainer_jobs in (0, 1):
            found.append(row(Path(folder), rows, trainer_jobs))
            print(markdown(HEAD, found[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
    return markdown(HEAD, found)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small table")
    print(report(parser.parse_args().quick))


if __name__ == "__main__":
    main()
