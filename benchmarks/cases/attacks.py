"""
Robust rules under attack: ``python -m benchmarks.cases.attacks --splits SPLIT ... --seeds SEED ... --data FOLDER``.

Accuracy on MNIST's test set of the perceptron 2NN after some rounds of eleven clients, two or four of them
hostile, for each rule and attack; written to ``docs/results/attacks.md``. Clients train and updates are merged by
the code of the workers, in this process and without Redis. A hostile client is one whose update is
replaced before it is pushed, or whose labels are.

Each finished run is a line of a file of results. Those that are there already are not run again, so what
was interrupted goes on where it was; delete the file to measure anew.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import environment
from benchmarks.harness.attackers import ATTACKS, CLIENTS, HOSTILE, SENT, Arrays, Round
from benchmarks.harness.federation import ROOT
from benchmarks.harness.table import markdown
from fl_queue import metrics
from fl_queue.aggregation.merge import UpdateMerger
from fl_queue.aggregation.scales import choose_scales
from fl_queue.client import local_update
from fl_queue.config import loading
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import MessageError
from fl_queue.protocol import tensor_layout
from fl_queue.protocol.header import Header
from fl_queue.protocol.manifest import Manifest
from fl_queue.tasks.base import Task
from fl_queue.tasks.context import ClientContext
from fl_queue.tasks.mnist import TwoLayerPerceptron
from fl_queue.training import determinism

ROUNDS = 4
#: Parts the data is split into, of which each client has one.
SHARES = 88
RUN = "attacks"
#: Accuracy below that of the same rule without attack which counts as not withstood, in points.
LOST = 5.0


@dataclass(frozen=True)
class Rule:
    """
    A way of merging.

    Args:
        name: In the table.
        strategy: ``aggregation.strategy``.
        options: ``{f}`` in them is the number of hostile clients.
        most: Hostile clients it is defined for, of ``CLIENTS``.
    """

    name: str
    strategy: str
    options: tuple[str, ...] = ()
    most: int = (CLIENTS - 1) // 2

    def settings(self, hostile: int) -> tuple[str, ...]:
        """As ``--set`` takes them."""
        options = (option.format(f=hostile) for option in self.options)
        return (f"aggregation.strategy={self.strategy}", *options)


RULES = (
    Rule("mean (`fedavg`, uniform)", "fedavg"),
    Rule("`median`", "median"),
    Rule("`trimmed_mean`", "trimmed_mean", ("strategy.f={f}", "strategy.beta=0.0")),
    Rule("`krum`", "krum", ("strategy.f={f}",), (CLIENTS - 3) // 2),
    Rule("`multi_krum`", "multi_krum", ("strategy.f={f}",), (CLIENTS - 3) // 2),
    Rule("`bulyan`", "bulyan", ("strategy.f={f}",), (CLIENTS - 3) // 4),
    Rule("`geometric_median`", "geometric_median"),
)


class Flipped(TwoLayerPerceptron):
    """The same task with flipped labels: a 0 is labelled 9."""

    def target_of(self, labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """9 - label."""
        return 9 - labels


class Trainer:
    """
    Rounds of one split of the data.

    Args:
        data: Folder of MNIST; None: the excerpt.
        seed: Decides the split, the first model and the order of samples.
    """

    def __init__(self, partition: str, data: Path | None, seed: int) -> None:
        source = ("data.source=full", f"data.dir={data}") if data else ("data.source=excerpt",)
        self.settings = (
            "run.task=mnist-2nn", f"round.cohort={CLIENTS}", "aggregation.weighting=uniform",
            "train.batch_size=50", "train.learning_rate=0.3", f"data.partition={partition}", "data.alpha=0.5", f"run.seed={seed}",
            *source,
        )  # fmt: skip
        plain = loading.load(None, self.settings, {})
        self.honest, self.hostile = TwoLayerPerceptron(plain), Flipped(plain)
        self.manifest, arrays = local_update.initial_model(self.honest, plain.run.seed)
        self.first = bytes(tensor_layout.encode_body(self.manifest, arrays))
        # All rules begin with the same version, and some rules make the same of two attacks.
        self.trained = lru_cache(maxsize=16 * CLIENTS)(self._trained)

    def context(self, number: int, round_number: int) -> ClientContext:
        """Client ``number``'s, from 0."""
        plain = self.honest.config
        return ClientContext.of(
            plain,
            client=f"site-{number:02}",
            run=RUN,
            round_number=round_number,
            share=number,
            shares=SHARES,
            data_dir=plain.data.dir,
        )

    def _trained(self, body: bytes, number: int, round_number: int, flipped: bool) -> Arrays:
        """The update of client ``number`` to a version."""
        task: Task = self.hostile if flipped else self.honest
        base = tensor_layout.views(self.manifest, body)
        made = local_update.train_update(
            task, self.manifest, base, self.context(number, round_number)
        )
        return {name: made.tensors[name] for name in made.tensors}

    def accuracy(self, body: bytes) -> float:
        """On the test set, in percent."""
        context = self.context(0, 0)
        dataset = self.honest.test_data(context.data_dir)
        views = tensor_layout.views(self.manifest, body)
        sums = local_update.evaluate_version(self.honest, self.manifest, views, dataset, context)
        return 100.0 * metrics.finish(sums)["accuracy"]

    def run(self, rule: Rule, hostile: int, attack: str, rounds: int) -> float:
        """Accuracy after some rounds of a rule under an attack of the first clients."""
        loaded = loading.load(None, (*self.settings, *rule.settings(hostile)), {})
        act, labels = ATTACKS[attack]
        body = self.first
        for number in range(1, rounds + 1):
            honest = [self.trained(body, i, number, False) for i in range(hostile, CLIENTS)]
            known = Round(honest, hostile, loaded.aggregation.limit)
            if labels:
                own = (self.trained(body, i, number, labels == "flipped") for i in range(hostile))
                sent = [act(update, known) for update in own]
            else:
                # They need no update of their own, and send the same one.
                sent = [act(honest[0], known)] * hostile
            body = merged(self.manifest, loaded, body, [*sent, *honest], number)
        return self.accuracy(body)


def merged(
    manifest: Manifest, loaded: RunConfig, base: bytes, updates: Sequence[Arrays], number: int
) -> bytes:
    """The next version, as an aggregator makes it: what is beyond the limits is rejected."""
    limits = {"parameter": loaded.aggregation.limit}
    scales: Mapping[str, Sequence[float]] = choose_scales(len(updates), 1, limits)
    merge = UpdateMerger.of_round(manifest, loaded, scales, 1)
    for index, update in enumerate(updates):
        body = tensor_layout.encode_body(manifest, update)
        header = Header(
            kind="update",
            run=RUN,
            round=number,
            client=f"site-{index:02}",
            num_examples=1,
            tensors=tensor_layout.entries(manifest),
            body_bytes=len(body),
            body_digest=tensor_layout.body_digest(body),
        )
        try:
            merge.check(header)
            merge.add(header, body)
        except MessageError:
            continue
    if merge.count < merge.strategy.min_updates():
        return base  # The round is abandoned.
    return b"".join(tensor_layout.as_bytes(piece) for piece in merge.next_model(base))


class Run(NamedTuple):
    """One cell of a table, for one seed."""

    split: str
    hostile: int
    rule: str
    attack: str
    seed: int
    rounds: int


class Results:
    """
    Accuracies of runs, kept in a file as they come.

    Args:
        path: JSON lines, one a run; made when the first run ends.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.found: dict[Run, float] = {
            Run(*run): accuracy for run, accuracy in map(json.loads, lines)
        }

    def add(self, run: Run, accuracy: float) -> None:
        """Keep one."""
        self.found[run] = accuracy
        with self._path.open("a") as file:
            file.write(json.dumps([run, accuracy]) + "\n")

    def of(self, split: str, hostile: int, rule: Rule, attack: str) -> list[float]:
        """Of all seeds there are."""
        cell = (split, hostile, rule.name, attack)
        return [accuracy for run, accuracy in self.found.items() if run[:4] == cell]


def measure(results: Results, wanted: Sequence[Run], data: Path | None) -> None:
    """Run what is missing, and print how far it is."""
    rules = {rule.name: rule for rule in RULES}
    missing = [run for run in wanted if run not in results.found]
    make = lru_cache(maxsize=1)(Trainer)
    for number, run in enumerate(missing, start=1):
        began = time.monotonic()
        trainer = make(run.split, data, run.seed)
        accuracy = trainer.run(rules[run.rule], run.hostile, run.attack, run.rounds)
        results.add(run, accuracy)
        took = time.monotonic() - began
        words = f"{run.split}, {run.hostile} hostile, {run.rule}, {run.attack}, seed {run.seed}"
        print(f"{number} of {len(missing)}: {words}: {accuracy:.1f} ({took:.1f} s)", flush=True)


def plan(
    splits: Sequence[str],
    hostiles: Sequence[int],
    attacks: Sequence[str],
    seeds: Sequence[int],
    rounds: int,
) -> list[Run]:
    """All runs: one split and seed after the other, whose first model and first round they share."""
    return [
        Run(split, hostile, rule.name, attack, seed, rounds)
        for hostile, seed, split in itertools.product(hostiles, seeds, splits)
        for rule in RULES
        for attack in attacks
        if hostile <= rule.most
    ]


def table(results: Results, split: str, hostile: int, attacks: Sequence[str]) -> str:
    """Rules against attacks: accuracy in percent, over the seeds."""
    rows = [
        [rule.name, *(cell(results.of(split, hostile, rule, attack)) for attack in attacks)]
        for rule in RULES
        if hostile <= rule.most
    ]
    return markdown(("rule", *attacks), rows)


def lost(
    results: Results, splits: Sequence[str], hostiles: Sequence[int], attacks: Sequence[str]
) -> str:
    """Rules, and the attacks they do not withstand."""
    places = [(split, hostile) for hostile in hostiles for split in splits]
    rows = []
    for rule in RULES:
        row = [rule.name]
        for split, hostile in places:
            if hostile > rule.most:
                row.append("not defined")
                continue
            none, *others = (
                statistics.fmean(results.of(split, hostile, rule, attack)) for attack in attacks
            )
            pairs = zip(attacks[1:], others, strict=True)
            failed = [
                f"{name} (-{none - found:.0f})" for name, found in pairs if none - found > LOST
            ]
            row.append(", ".join(failed) or "withstands all")
        rows.append(row)
    heads = (f"{hostile} of {CLIENTS}, {_SHORT[split]}" for split, hostile in places)
    return markdown(("rule", *heads), rows)


def cell(accuracies: Sequence[float]) -> str:
    """Mean and sample standard deviation; of one seed the number itself."""
    mean = f"{statistics.fmean(accuracies):.1f}"
    return f"{mean} ± {statistics.stdev(accuracies):.1f}" if len(accuracies) > 1 else mean


def document(
    results: Results,
    splits: Sequence[str],
    hostiles: Sequence[int],
    attacks: Sequence[str],
    rounds: int,
    seeds: Sequence[int],
) -> str:
    """The whole document."""
    several = ", ".join(map(str, seeds))
    seeds_note = (
        f"Mean and sample standard deviation over the seeds {several}: a seed decides the split, the first model and the\norder of samples."
        if len(seeds) > 1
        else f"One seed, {several}: differences of about one percent are within chance."
    )
    parts = [
        f"## {hostile} of {CLIENTS} hostile, {_SPLITS[split]}\n\n{table(results, split, hostile, attacks)}"
        for hostile in hostiles
        for split in splits
    ]
    sent = markdown(
        ("attack", "each hostile client sends", "paper"), [[name, *SENT[name]] for name in attacks]
    )
    given = " ".join(f"'{name}'" if " " in name else name for name in attacks[1:])
    return _HEAD.format(
        attacks=sent, given=given, read=_READ,
        clients=CLIENTS, rounds=rounds, shares=SHARES, tables="\n".join(parts), lost=lost(results, splits, hostiles, attacks),
        points=LOST, splits=" ".join(splits), machine=environment.table(),
        seeds_note=seeds_note, seeds=" ".join(map(str, seeds)),
    )  # fmt: skip


#: Partitions there are tables of.
_SPLITS = {
    "iid": "data split at random",
    "dirichlet_label": "data split by label, Dirichlet(0.5)",
}
_SHORT = {"iid": "random", "dirichlet_label": "by label"}


#: Conclusions from the tables, written by hand: revise them after each new measurement.
_READ = """\
- The mean withstands none of the crude attacks: sign flips and updates at the limit leave 8 to 16 %.
- Data split at random, two hostile of eleven: every robust rule withstands all of these attacks.
- Data split at random, four of eleven: updates at the limit move no rule by more than 7 points, but sign flips of five
  times the length take 11 to 13 from median, trimmed mean and geometric median, and IPM 9 to 12 from Krum and multi-Krum.
- Data split by label: honest updates differ so much that an attack hides among them. IPM by two of eleven takes 15 to 26
  points from all but Krum; by four it leaves Krum and multi-Krum at chance and the other robust rules below 30 %, where the
  plain mean keeps 49: under ALIE, IPM and min-max by four of eleven the mean ends above every rule. The geometric
  median's promise, a distance of a few times that of the furthest honest update, does not imply that the model still learns.
  On such data no rule replaces knowing who may send updates (docs/guides/security.md); it helps against broken and crude ones.
- Without attack the geometric median costs nothing here; Krum, which takes one update of eleven, costs 11 points on data
  split at random and 28 by label."""


_HEAD = """\
# Robust rules under attack

Accuracy in percent on MNIST's test set after {rounds} rounds of {clients} clients, two or four of them hostile:
perceptron 2NN, each with a part in {shares} of the training set, one epoch a round, batches of 50, learning
rate 0.3, weights uniform. {seeds_note} Small on purpose, so that all of it runs on one core within the hour: a
model that trains for longer gives an attacker more rounds.
Written by `python -m benchmarks.cases.attacks --data FOLDER --splits {splits} --seeds {seeds} --attacks {given}`,
which goes on where it was interrupted.

Trimmed mean, Krum, multi-Krum and Bulyan are given the true number of hostile clients as `f`; Bulyan is not
defined for 4 of 11. Hostile clients act together and know all honest updates, but not the rule.

{attacks}
## What each rule withstands

The attacks that take more than {points:g} points from what the rule reaches without attack, with how many they take:

{lost}
A rule that is poor without attack has little to lose: the tables below have the accuracies themselves.

{read}

{tables}
docs/reference/strategies.md describes each rule.

## Machine

{machine}"""


def main() -> None:
    """Write the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--attacks", nargs="+", choices=list(ATTACKS)[1:], default=list(ATTACKS)[1:], metavar="NAME",
        help=f"all by default: {', '.join(list(ATTACKS)[1:])}",
    )  # fmt: skip
    parser.add_argument("--splits", nargs="+", choices=list(_SPLITS), default=["iid"])
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"of each run; {ROUNDS}")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="one run for each; 0")
    parser.add_argument("--data", type=Path, help="folder of MNIST; default: the excerpt")
    parser.add_argument(
        "--hostile", nargs="+", type=int, choices=HOSTILE, default=HOSTILE, help="clients; both"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "results" / "attacks.md")
    parser.add_argument(
        "--results", type=Path, help="runs that are done; attacks.jsonl beside OUTPUT"
    )
    parser.add_argument("--no-runs", action="store_true", help="write of what is done already")
    arguments = parser.parse_args()
    determinism.preload()
    attacks = [name for name in ATTACKS if name == "none" or name in arguments.attacks]
    rounds = arguments.rounds
    seeds = list(dict.fromkeys(arguments.seeds))
    hostiles = sorted(set(arguments.hostile))
    wanted = plan(arguments.splits, hostiles, attacks, seeds, rounds)
    results = Results(arguments.results or arguments.output.with_suffix(".jsonl"))
    if not arguments.no_runs:
        measure(results, wanted, arguments.data)
    results.found = {run: results.found[run] for run in wanted if run in results.found}
    arguments.output.write_text(
        document(results, arguments.splits, hostiles, attacks, rounds, seeds)
    )
    print(arguments.output)


if __name__ == "__main__":
    main()
