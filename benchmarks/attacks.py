"""
Robust rules under attack: ``python -m benchmarks.attacks --splits SPLIT ... --seeds SEED ... --data FOLDER``.

Accuracy on MNIST's test set of the perceptron 2NN after some rounds of eleven clients, two of them hostile,
for each rule and attack; written to ``docs/attacks.md``. Clients train and updates are merged by the code
of the workers, in this process and without Redis. A hostile client is one whose update is replaced before
it is pushed, or whose labels are.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks import machine
from benchmarks.federation import ROOT
from benchmarks.table import markdown
from fl_queue import blob, config, metrics, reproducible, training
from fl_queue.config import RunConfig
from fl_queue.errors import BlobError
from fl_queue.header import Header
from fl_queue.merge import Merge
from fl_queue.records import Manifest
from fl_queue.sampling import seed_for
from fl_queue.scales import choose_scales
from fl_queue.tasks import ClientContext, Task
from fl_queue.tasks.mnist import TwoLayerPerceptron

CLIENTS, HOSTILE, ROUNDS = 11, 2, 4
#: Parts the data is split into, of which each client has one.
SHARES = 44
RUN = "attacks"
Arrays = dict[str, NDArray[np.float32]]
#: (own update, updates of the honest, random numbers) -> what is pushed.
Attack = Callable[[Arrays, Sequence[Arrays], np.random.Generator], Arrays]

#: Name -> strategy and its options.
RULES: dict[str, tuple[str, ...]] = {
    "mean (`fedavg`, uniform)": ("aggregation.strategy=fedavg",),
    "`median`": ("aggregation.strategy=median",),
    "`trimmed_mean`, f = 2": (
        "aggregation.strategy=trimmed_mean",
        "strategy.f=2",
        "strategy.beta=0.0",
    ),
    "`krum`, f = 2": ("aggregation.strategy=krum", "strategy.f=2"),
    "`multi_krum`, f = 2": ("aggregation.strategy=multi_krum", "strategy.f=2"),
    "`bulyan`, f = 2": ("aggregation.strategy=bulyan", "strategy.f=2"),
    "`geometric_median`": ("aggregation.strategy=geometric_median",),
}


class Flipped(TwoLayerPerceptron):
    """The same task on labels that are turned round: a 0 is said to be a 9."""

    def target_of(self, labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """9 - label."""
        return 9 - labels


def as_it_is(own: Arrays, honest: Sequence[Arrays], rng: np.random.Generator) -> Arrays:
    """No change to the update."""
    return own


def sign_flip(own: Arrays, honest: Sequence[Arrays], rng: np.random.Generator) -> Arrays:
    """Five times its own update, backwards."""
    return {name: np.float32(-5.0) * values for name, values in own.items()}


def noise(own: Arrays, honest: Sequence[Arrays], rng: np.random.Generator) -> Arrays:
    """Standard normal noise."""
    return {name: rng.standard_normal(values.shape, np.float32) for name, values in own.items()}


def inner_product(epsilon: float) -> Attack:
    """
    What knows all honest updates, and pulls their mean's inner product with the result below zero.

    Source:
        Xie et al. 2020, arXiv 1903.03936, "Fall of Empires" (inner product manipulation).
    """

    def attack(own: Arrays, honest: Sequence[Arrays], rng: np.random.Generator) -> Arrays:
        return {
            name: (-epsilon * np.mean([sent[name] for sent in honest], axis=0)).astype(np.float32)
            for name in own
        }

    return attack


#: Name -> what is done to the update, and whether the hostile train on flipped labels.
ATTACKS: dict[str, tuple[Attack, bool]] = {
    "none": (as_it_is, False),
    "sign flip": (sign_flip, False),
    "noise": (noise, False),
    "label flip": (as_it_is, True),
    "IPM 10": (inner_product(10.0), False),
    "IPM 0.5": (inner_product(0.5), False),
}


class Trainer:
    """
    Rounds of one split of the data.

    Args:
        data: Folder of MNIST; None: the excerpt.
        seed: Decides the split, the first model, the order of samples, and the noise.
    """

    def __init__(self, partition: str, data: Path | None, seed: int) -> None:
        source = ("data.source=full", f"data.dir={data}") if data else ("data.source=excerpt",)
        self.settings = (
            "run.task=mnist-2nn", f"round.cohort={CLIENTS}", "aggregation.weighting=uniform",
            "train.batch_size=50", "train.learning_rate=0.3", f"data.partition={partition}", "data.alpha=0.5", f"run.seed={seed}",
            *source,
        )  # fmt: skip
        plain = config.load(None, self.settings, {})
        self.honest, self.hostile = TwoLayerPerceptron(plain), Flipped(plain)
        self.manifest, arrays = training.initial_model(self.honest, plain.run["seed"])
        self.first = bytes(blob.encode_body(self.manifest, arrays))
        # All rules begin with the same version.
        self._first = cache(self._trained)

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
        )

    def trained(self, body: bytes, number: int, round_number: int, flipped: bool) -> Arrays:
        """The update of client ``number`` to a version."""
        make = self._first if body is self.first else self._trained
        return make(body, number, round_number, flipped)

    def _trained(self, body: bytes, number: int, round_number: int, flipped: bool) -> Arrays:
        task: Task = self.hostile if flipped else self.honest
        base = blob.views(self.manifest, body)
        made = training.train_update(task, self.manifest, base, self.context(number, round_number))
        return {name: made.tensors[name] for name in made.tensors}

    def accuracy(self, body: bytes) -> float:
        """On the test set, in percent."""
        context = self.context(0, 0)
        dataset = self.honest.test_data(context.data_dir)
        views = blob.views(self.manifest, body)
        sums = training.evaluate_version(self.honest, self.manifest, views, dataset, context)
        return 100.0 * metrics.finish(sums)["accuracy"]

    def run(self, rule: Sequence[str], attack: str, rounds: int) -> float:
        """Accuracy after some rounds of a rule under an attack."""
        loaded = config.load(None, (*self.settings, *rule), {})
        act, flipped = ATTACKS[attack]
        body = self.first
        for number in range(1, rounds + 1):
            honest = [self.trained(body, i, number, False) for i in range(HOSTILE, CLIENTS)]
            rng = np.random.default_rng(seed_for(loaded.run["seed"], RUN, attack, number))
            hostile = [
                act(self.trained(body, i, number, flipped), honest, rng) for i in range(HOSTILE)
            ]
            body = merged(self.manifest, loaded, body, [*hostile, *honest], number)
        return self.accuracy(body)


def merged(
    manifest: Manifest, loaded: RunConfig, base: bytes, updates: Sequence[Arrays], number: int
) -> bytes:
    """The next version, as an aggregator makes it: what is beyond the limits is rejected."""
    limits = {"parameter": loaded.aggregation["limit"]}
    scales: Mapping[str, Sequence[float]] = choose_scales(len(updates), 1, limits)
    merge = Merge.of_round(manifest, loaded, scales, 1)
    for index, update in enumerate(updates):
        body = blob.encode_body(manifest, update)
        header = Header(
            kind="update",
            run=RUN,
            round=number,
            client=f"site-{index:02}",
            num_examples=1,
            tensors=blob.entries(manifest),
            body_bytes=len(body),
            body_digest=blob.body_digest(body),
        )
        try:
            merge.check(header)
            merge.add(header, body)
        except BlobError:
            continue
    if merge.count < merge.strategy.fewest():
        return base  # The round is abandoned.
    return b"".join(blob.as_bytes(piece) for piece in merge.next_model(base))


def table(
    partition: str, data: Path | None, rounds: int, attacks: Sequence[str], seeds: Sequence[int]
) -> str:
    """Rules against attacks: accuracy in percent, over the seeds."""
    trainers = [Trainer(partition, data, seed) for seed in seeds]
    rows: list[list[object]] = []
    for name, rule in RULES.items():
        cells = (
            cell([trainer.run(rule, attack, rounds) for trainer in trainers]) for attack in attacks
        )
        rows.append([name, *cells])
        print(" | ".join(map(str, rows[-1])), flush=True)
    return markdown(("rule", *attacks), rows)


def cell(accuracies: Sequence[float]) -> str:
    """Mean and sample standard deviation; of one seed the number itself."""
    mean = f"{statistics.fmean(accuracies):.1f}"
    return f"{mean} ± {statistics.stdev(accuracies):.1f}" if len(accuracies) > 1 else mean


def document(tables: Mapping[str, str], rounds: int, seeds: Sequence[int], cpu_s: float) -> str:
    """The whole document. Args: ``tables``: partition -> its table."""
    several = ", ".join(map(str, seeds))
    said = (
        f"Mean and sample standard deviation over the seeds {several}: a seed decides the split, the first model, the\norder of samples and the noise."
        if len(seeds) > 1
        else f"One seed, {several}: differences of about one percent say nothing."
    )
    parts = [f"## {_SPLITS[partition]}\n\n{text}" for partition, text in tables.items()]
    return _HEAD.format(
        clients=CLIENTS, hostile=HOSTILE, rounds=rounds, shares=SHARES, tables="\n".join(parts),
        splits=" ".join(tables), machine=machine.table(), minutes=cpu_s / 60,
        said=said, seeds=" ".join(map(str, seeds)),
    )  # fmt: skip


#: Partitions there are tables of.
_SPLITS = {
    "iid": "Data split at random",
    "dirichlet_label": "Data split by label, Dirichlet(0.5)",
}


_HEAD = """\
# Robust rules under attack

Accuracy in percent on MNIST's test set after {rounds} rounds of {clients} clients, {hostile} of them hostile:
perceptron 2NN, each with a part in {shares} of the training set, one epoch a round, batches of 50, learning
rate 0.3, weights uniform. {said}
Written by `python -m benchmarks.attacks --data FOLDER --splits {splits} --seeds {seeds}`; {minutes:.1f} minutes of one core.

- none: all are honest. What a rule costs.
- sign flip: five times their own update, backwards.
- noise: standard normal noise in place of an update.
- label flip: they train on labels 9 - y.
- IPM e: minus e times the mean of the honest updates, which they know (inner-product manipulation, arXiv 1903.03936).

{tables}
docs/strategies.md says what each rule is.

## Machine

{machine}"""


def main() -> None:
    """Write the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one attack only")
    parser.add_argument("--splits", nargs="+", choices=list(_SPLITS), default=["iid"])
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"of each run; {ROUNDS}")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="one run for each; 0")
    parser.add_argument("--data", type=Path, help="folder of MNIST; default: the excerpt")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "attacks.md")
    arguments = parser.parse_args()
    reproducible.preload()
    attacks, rounds = list(ATTACKS)[: 2 if arguments.quick else None], arguments.rounds
    seeds = list(dict.fromkeys(arguments.seeds))
    tables = {
        split: table(split, arguments.data, rounds, attacks, seeds) for split in arguments.splits
    }
    arguments.output.write_text(document(tables, rounds, seeds, time.process_time()))
    print(arguments.output)


if __name__ == "__main__":
    main()
