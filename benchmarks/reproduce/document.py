"""What has been measured, beside what was published, as Markdown."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from benchmarks.harness import environment
from benchmarks.harness.table import markdown
from benchmarks.reproduce.jobs import Job, Measured, Results
from benchmarks.reproduce.plan import (
    ALGORITHMS,
    FULL,
    QUICK,
    QUICK_TARGET,
    TARGETS,
    Algorithm,
    Comparison,
    Target,
)

_WAITS = "not measured yet"

_HEAD = """\
# Published results, measured again

Written by `make reproduce`: full MNIST, and whole runs of fl-queue (a simulation's worker pool, Redis, \
aggregator and evaluator, started as `fl-queue start-round` starts them, from `config/mnist-2nn-100.toml` \
with the settings below). It is resumable; `make reproduce-quick` measures a part in about three minutes. \
Seconds are the lengths of the rounds. They depend on what else the machine does: beside them stands its \
median load average meanwhile, and where that is far above the number of cores, the seconds are many times those \
of a quiet machine. Rounds and accuracies do not depend on it.
"""

_TARGETS = """\
## Rounds to an accuracy: McMahan et al. 2017

The models and splits of arXiv 1602.05629: 2NN (199,210 parameters) and CNN (1,663,370), 100 clients of 600 \
images, 10 a round (C = 0.1), plain SGD. Non-IID is the paper's pathological split, two shards of 300 of \
the images sorted by label. The metric is the paper's: accuracy on the 10,000 test images after each round, \
best so far, rounds by linear interpolation at the crossing. A run ends when it crosses, or at the published \
number of rounds. The paper took the best of 11 to 13 learning rates in each cell; here one value was \
taken for each row, without a search, and three for the CNN (`make reproduce ARGS=--more` measures the other \
two again, and further seeds, in two hours more). Published rounds are those of tables 1, 2 and 4.
"""

_COMPARISON = """\
## Algorithms side by side

MNIST 2NN, {clients} clients, all of them in each round, Dirichlet by label with alpha = {alpha:g} \
(`dirichlet_label`: sizes differ, too), E = {epochs}, B = {batch}, {rounds} rounds, plain SGD. A seed decides the \
split, the first model and the order of samples. Accuracy is that on the 10,000 test images{spread}. {choice}\
"""

_CHOICE = """\
Learning rates were chosen on validation data: each client holds out a tenth of its images, and of the values \
tried that with the highest accuracy on all of these after {rounds} rounds with seed {seed}, which is none of \
the others, was taken. With FedAdam and FedYogi the server's step was chosen so, and the clients' is FedAvg's. \
The test set had no part in it.

Published, for orientation (Flower's niid-bench baseline on MNIST Dir(0.5), another setting: LeNet-like CNN, E = 10, B = 64, momentum 0.9, best \
of 50 rounds): FedAvg 98.89, FedProx 99.02, SCAFFOLD 99.07, FedNova 98.03 %.
"""

_FIXED = "Learning rates are the middle of what `make reproduce` tries, and the data is the shipped excerpt.\n"


def render(results: Results, quick: bool = False) -> str:
    """The document; rows without a measurement are marked."""
    comparison = QUICK if quick else FULL
    targets = (QUICK_TARGET,) if quick else TARGETS
    parts = [_HEAD, _TARGETS, targets_table(results, targets), compared(results, comparison)]
    if not quick:
        parts += ["## Measured on\n", environment.table()]
    return "\n".join(parts)


def missed(results: Results, targets: Sequence[Target]) -> list[str]:
    """Titles of the rows that were measured and did not reach their accuracy."""
    return [
        target.title
        for target in targets
        for job in target.jobs
        if (measured := results.get(job)) and measured.rounds_to(target.accuracy) is None
    ]


# --- rounds to an accuracy


def targets_table(results: Results, targets: Sequence[Target]) -> str:
    """A row for each run."""
    head = (
        "model, split", "accuracy", "learning rate", "seed", "published rounds", "rounds here", "", "seconds", "load",
    )  # fmt: skip
    rows: list[list[object]] = []
    for target in targets:
        further = [seed for seed in target.more if results.get(target.job(seed))]
        for seed in (*target.seeds, *further):
            published = f"{target.published}{f' ({target.also})' if target.also else ''}"
            rows.append(
                [target.title, f"{100 * target.accuracy:g} %", target.settings["train.learning_rate"], seed,
                 published, *_outcome(target, results.get(target.job(seed)))]
            )  # fmt: skip
    return markdown(head, rows)


def _outcome(target: Target, measured: Measured | None) -> list[str]:
    """Rounds, reached or not, seconds, load."""
    if measured is None:
        return ["", _WAITS, "", ""]
    load = _load([measured])
    rounds = measured.rounds_to(target.accuracy)
    if rounds is None:
        best = max(measured.accuracy.values())
        outcome = f"not reached: {100 * best:.2f} % after {measured.last}"
        return ["", outcome, _seconds(measured, measured.last), load]
    return [f"{rounds:.1f}", "reached", _seconds(measured, math.ceil(rounds)), load]


def _seconds(measured: Measured, version: int) -> str:
    return f"{measured.seconds[version]:.0f}" if version in measured.seconds else ""


def _load(found: Sequence[Measured]) -> str:
    known = [measured.load for measured in found if measured.load is not None]
    return f"{statistics.fmean(known):.0f}" if known else ""


# --- algorithms side by side


def compared(results: Results, comparison: Comparison) -> str:
    """The section, with a row for each algorithm."""
    settings = comparison.settings
    many = len(comparison.seeds) > 1
    choice = _FIXED
    if comparison.tuning_rounds:
        choice = _CHOICE.format(rounds=comparison.tuning_rounds, seed=comparison.tuning_seed)
    text = _COMPARISON.format(
        clients=settings["clients.count"],
        alpha=settings["data.alpha"],
        epochs=settings["train.epochs"],
        batch=settings["train.batch_size"],
        rounds=comparison.rounds,
        spread=", mean and sample standard deviation over the seeds, in percent" if many else "",
        choice=choice,
    )
    half, last = comparison.rounds // 4 * 2, comparison.rounds
    head = (
        "algorithm", "clients' rate", "server's rate", "tried", "settings", "seeds",
        f"after {half} rounds", f"after {last} rounds", "seconds a run", "load",
    )  # fmt: skip
    return (
        f"{text}\n{markdown(head, [_compared(results, comparison, each) for each in ALGORITHMS])}"
    )


def _compared(results: Results, comparison: Comparison, algorithm: Algorithm) -> list[object]:
    jobs = comparison.jobs(results, algorithm)
    found = [measured for job in jobs if (measured := results.get(job))]
    is_server = algorithm.tuned != "train.learning_rate"
    chosen = comparison.choose(results, algorithm)
    rate = comparison.client_rate(results, algorithm)
    tried = ", ".join(f"{value:g}" for value in algorithm.grid) if comparison.tuning_rounds else ""
    row: list[object] = [
        algorithm.name,
        "" if rate is None else f"{rate:g}",
        f"{chosen:g}" if is_server and chosen is not None else "",
        tried,
        algorithm.options,
        ", ".join(str(seed) for seed in comparison.seeds),
    ]
    if len(found) < len(comparison.seeds):
        return [*row, "", f"{_WAITS} ({len(found)} of {len(comparison.seeds)} seeds)", "", ""]
    if any(comparison.rounds not in measured.accuracy for measured in found):
        return [*row, "", "diverged", "", _load(found)]
    half = comparison.rounds // 4 * 2
    lasts = [measured.accuracy.get(comparison.rounds, math.nan) for measured in found]
    halves = [measured.accuracy.get(half, math.nan) for measured in found]
    seconds = statistics.fmean(measured.seconds[comparison.rounds] for measured in found)
    return [*row, _percent(halves), _percent(lasts), f"{seconds:.0f}", _load(found)]


def _percent(values: Sequence[float]) -> str:
    """``mean +- sample standard deviation``, in percent."""
    mean = f"{100 * statistics.fmean(values):.2f}"
    return f"{mean} ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else mean


def describe(job: Job, measured: Measured) -> str:
    """Progress line for the terminal."""
    last = max(measured.accuracy.values(), default=math.nan)
    rounds = measured.rounds_to(job.target) if job.target is not None else None
    where = f", {100 * (job.target or 0):g} % at round {rounds:.1f}" if rounds is not None else ""
    seconds = measured.seconds.get(max(measured.seconds, default=0), math.nan)
    return f"{job.name}: best {100 * last:.2f} %{where}, {seconds:.0f} s"
