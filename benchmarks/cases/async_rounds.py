"""
Asynchronous rounds beside synchronous ones: ``python -m benchmarks.cases.async_rounds --data FOLDER``.

MNIST 2NN on eight client workers, of which two take five times as long as the
others: their jobs sleep, so that neither this machine's speed nor its load is what is compared. Each
way of running rounds goes on until test accuracy is 95 %; what counts is the time from the opening of
the first round to the commit of that version. Once with 2,000 images a client dealt
out at random, once with 7,500 of about two digits, where what the slow ones know is known to few others.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness.federation import Federation
from benchmarks.harness.table import markdown
from fl_queue.coordinator.operations import controls
from fl_queue.models import selection
from fl_queue.protocol.records import RoundRecord
from fl_queue.store import keyspace

CLIENTS, SLOW, FACTOR = 8, ("site-4", "site-8"), 5
TARGET = 0.95
SETTINGS = (
    "data.source=full", "data.validation_fraction=0", "train.batch_size=20",
    "train.learning_rate=0.1", f"task.slow={' '.join(SLOW)}", f"task.factor={FACTOR}", "run.rounds=9999",
)  # fmt: skip
SYNC = (f"round.cohort={CLIENTS}", "round.grace_s=0")
ASYNC = ("round.mode=async", "round.cohort=1.0", f"round.concurrency={CLIENTS}")
WAYS = {
    "synchronous, all 8": SYNC,
    "synchronous, quorum 6 of 8": (*SYNC, "round.quorum=6"),
    "asynchronous, buffer 3": (*ASYNC, "round.buffer=3"),
    "asynchronous, buffer 6": (*ASYNC, "round.buffer=6"),
}
#: How the 60,000 images are split: of 30 equal shares eight are used, or all of eight.
SPLITS = {
    "at random": ("data.shares=30",),
    "two digits a client": ("data.shares=8", "data.partition=shards"),
}


@dataclass(frozen=True)
class Reached:
    """How one run went. Args: ``seconds``: until the target; None: it was not reached in time."""

    seconds: float | None
    best: float
    records: list[RoundRecord]

    def row(self) -> list[object]:
        """For the table."""
        ages = [age for record in self.records for age in record.staleness.values()]
        merged = sum(len(record.accepted) for record in self.records)
        slow = sum(client in record.accepted for record in self.records for client in SLOW)
        took = (
            f"not reached; best {self.best:.1%}" if self.seconds is None else f"{self.seconds:.0f}"
        )
        age = f"{sum(ages) / len(ages):.1f} ({max(ages)})" if ages else "-"
        return [took, len(self.records), merged, slow, age]


def measure(
    federation: Federation, name: str, longest_s: float, settings: Sequence[str]
) -> Reached:
    """One run until it has the target, or the time is over; then it is cancelled."""
    run = federation.begin(name, 9999, *settings, task="Paced")
    control, until = federation.store.control, time.monotonic() + longest_s
    while True:
        tested = {
            version: found["accuracy"]
            for version, found in selection.test_metrics(federation.store, run).items()
        }
        good = [version for version, accuracy in tested.items() if accuracy >= TARGET]
        if good or time.monotonic() > until:
            break
        time.sleep(0.2)
    controls.cancel(federation.store, name)
    history = [record for record in control.history.records(run) if record.outcome == "committed"]
    if not good:
        return Reached(None, max(tested.values(), default=0.0), history)
    first, stamps = min(good), _stamps(federation, run)
    records = [record for record in history if (record.version or 0) <= first]
    seconds = stamps["round_committed", records[-1].round] - stamps["round_opened", 1]
    return Reached(seconds, tested[first], records)


def _stamps(federation: Federation, run: str) -> dict[tuple[str, int], float]:
    """(event, round) -> Unix seconds."""
    streams = {keyspace.events(run): "0-0"}
    return {
        (event["event"], event["round"]): int(entry.partition("-")[0]) / 1000
        for _, entry, event in federation.store.control.events.read(streams, None)
        if "round" in event
    }


def report(
    data: Path, pace_s: float, seeds: Sequence[int], longest_s: float, splits: Sequence[str]
) -> str:
    """A table for each split."""
    parts = []
    with Federation(CLIENTS, evaluator=True) as federation:
        for number, split in enumerate(splits):
            rows: list[list[object]] = []
            for way, settings in WAYS.items():
                for seed in seeds:
                    found = measure(
                        federation, f"bench-{number}-{len(rows)}", longest_s,
                        (*SETTINGS, *SPLITS[split], *settings, f"data.dir={data}", f"run.seed={seed}", f"task.pace_s={pace_s}"),
                    )  # fmt: skip
                    rows.append([way, seed, *found.row()])
                    print(rows[-1], flush=True)
            head = (
                f"images {split}", "seed", "s to 95 %", "versions", "updates merged",
                "of them of slow clients", "staleness, mean (most)",
            )  # fmt: skip
            parts.append(markdown(head, rows))
    return "\n".join(parts)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with the files of MNIST")
    parser.add_argument("--pace", type=float, default=3.0, help="seconds a fast client's job takes")
    parser.add_argument("--seed", type=int, action="append", help="0; may be repeated")
    parser.add_argument("--longest", type=float, default=600.0, help="seconds a run may take")
    parser.add_argument("--split", choices=list(SPLITS), action="append", help="only this one")
    given = parser.parse_args()
    print(
        report(
            given.data.absolute(),
            given.pace,
            given.seed or [0],
            given.longest,
            given.split or [*SPLITS],
        )
    )


if __name__ == "__main__":
    main()
