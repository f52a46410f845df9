"""Plan of the measurements: rows of the FedAvg paper, and algorithms side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.reproduce.jobs import Job, Results

#: What every run here has in common, over ``config/mnist-2nn-100.toml``.
COMMON: Mapping[str, Any] = {"round.deadline_s": 3600.0, "data.source": "full"}


# --- McMahan et al. 2017


@dataclass(frozen=True)
class Target:
    """
    A number of the paper: rounds to an accuracy.

    Args:
        name: Of its jobs.
        title: Model and split.
        settings: Config fields, the learning rate among them.
        accuracy: To reach.
        published: Rounds the paper needed; no run here gets more.
        also: Another value of the paper for the same cell.
        seeds: One run for each.
        more: Seeds of further runs, with ``--more`` alone: they would not fit into the hour.
    """

    name: str
    title: str
    settings: Mapping[str, Any]
    accuracy: float
    published: int
    also: str
    seeds: tuple[int, ...]
    more: tuple[int, ...] = ()

    @property
    def jobs(self) -> list[Job]:
        """One for each seed."""
        return [self.job(seed) for seed in self.seeds]

    @property
    def more_jobs(self) -> list[Job]:
        """Those of ``--more``."""
        return [self.job(seed) for seed in self.more]

    def job(self, seed: int) -> Job:
        """The run with a seed."""
        return Job(
            f"{self.name}-s{seed}",
            {**COMMON, **self.settings, "run.seed": seed, "run.evaluate_every": 1},
            self.published,
            self.accuracy,
        )


def _local(epochs: int, learning_rate: float, **more: Any) -> dict[str, Any]:
    return {
        "train.epochs": epochs, "train.batch_size": 10, "train.learning_rate": learning_rate, **more,
    }  # fmt: skip


def _cnn(learning_rate: float, seeds: tuple[int, ...], more: tuple[int, ...]) -> Target:
    settings = _local(5, learning_rate, **{"run.task": "mnist-cnn"})
    title = "CNN, IID, E = 5, B = 10"
    return Target("cnn-iid-e5", title, settings, 0.99, 20, "18 in table 1", seeds, more)


TARGETS = (
    Target("2nn-iid-e10", "2NN, IID, E = 10, B = 10", _local(10, 0.1), 0.97, 34, "", (0, 1, 2)),
    Target(
        "2nn-iid-e1",
        "2NN, IID, E = 1, B = 10",
        _local(1, 0.1),
        0.97,
        87,
        "92 in table 4",
        (0, 1, 2),
    ),
    Target(
        "2nn-shards-e1",
        "2NN, pathological non-IID, E = 1, B = 10",
        _local(1, 0.05, **{"data.partition": "shards", "data.shards_per_client": 2}),
        0.97,
        664,
        "831 in table 4",
        (0,),
    ),
    _cnn(0.2, (0,), more=(1, 2)),
    # What led to 0.2.
    _cnn(0.1, (), more=(0,)),
    _cnn(0.316, (), more=(0,)),
)
#: What ``--quick`` measures of them.
QUICK_TARGET = replace(TARGETS[1], seeds=TARGETS[1].seeds[:1])


# --- algorithms side by side


@dataclass(frozen=True)
class Algorithm:
    """
    One of the algorithms that are compared.

    Args:
        name: As the table has it.
        settings: Config fields.
        tuned: The field that is chosen on validation data.
        grid: Its values.
        options: Note on its settings.
    """

    name: str
    settings: Mapping[str, Any]
    tuned: str = "train.learning_rate"
    #: A decade in steps of 10^(1/3), as the FedAvg paper takes.
    grid: tuple[float, ...] = (0.215, 0.464, 1.0)
    options: str = ""


def _strategy(name: str, **more: Any) -> dict[str, Any]:
    return {"aggregation.strategy": name, **more}


_UNIFORM = {"aggregation.weighting": "uniform"}
_SERVER = ("strategy.server_learning_rate", (0.01, 0.03, 0.1))
_TAU = "tau = 0.001, beta_1 = 0.9, beta_2 = 0.99"
FEDAVG = Algorithm("FedAvg", _strategy("fedavg"))
ALGORITHMS = (
    FEDAVG,
    Algorithm("FedProx", _strategy("fedprox", **{"strategy.mu": 0.01}), options="mu = 0.01"),
    Algorithm(
        "SCAFFOLD",
        _strategy("scaffold", **_UNIFORM),
        grid=(0.1, 0.215, 0.464),
        options="uniform weights",
    ),
    Algorithm("FedNova", _strategy("fednova")),
    Algorithm("FedAdam", _strategy("fedadam"), *_SERVER, _TAU),
    Algorithm("FedYogi", _strategy("fedyogi"), *_SERVER, _TAU),
    Algorithm("FedAvg", _strategy("fedavg", **_UNIFORM), options="uniform weights"),
)


@dataclass(frozen=True)
class Comparison:
    """
    Algorithms on MNIST 2NN, ten clients, all in each round.

    Args:
        rounds: Of each run.
        seeds: One run for each; a seed decides the split, the first model, and the order of samples.
        tuning_rounds: Of each run that chooses; 0: nothing is tuned, the middle of each grid is taken.
        tuning_seed: Of these; none of ``seeds``.
        settings: Config fields.
    """

    rounds: int = 20
    seeds: tuple[int, ...] = (1, 2, 3)
    tuning_rounds: int = 10
    tuning_seed: int = 0
    settings: Mapping[str, Any] = field(
        default_factory=lambda: {
            **COMMON, "clients.count": 10, "round.cohort": 10, "train.epochs": 1, "train.batch_size": 64,
            "data.partition": "dirichlet_label", "data.alpha": 0.5, "data.validation_fraction": 0.1,
        }
    )  # fmt: skip

    def tuning(self, results: Results, algorithm: Algorithm) -> dict[float, Job]:
        """Value of the grid -> the run that judges it; empty while FedAvg is not tuned."""
        base = self._settings(results, algorithm)
        if not self.tuning_rounds or base is None:
            return {}
        return {
            value: Job(
                f"tune-{_slug(algorithm)}",
                {**base, algorithm.tuned: value, "run.seed": self.tuning_seed,
                 "run.evaluate_every": self.tuning_rounds},
                self.tuning_rounds,
            )
            for value in algorithm.grid
        }  # fmt: skip

    def choose(self, results: Results, algorithm: Algorithm) -> float | None:
        """
        The value with the highest accuracy on the clients' held out samples; None: not tuned yet.

        Of two that are as good, the smaller.
        """
        if not self.tuning_rounds:
            return algorithm.grid[len(algorithm.grid) // 2]
        judged: dict[float, float] = {}
        for value, job in self.tuning(results, algorithm).items():
            measured = results.get(job)
            if measured is None:
                return None
            # A run that diverged did not come so far.
            judged[value] = measured.validation.get(self.tuning_rounds, 0.0)
        return max(sorted(judged), key=judged.__getitem__) if judged else None

    def jobs(self, results: Results, algorithm: Algorithm) -> list[Job]:
        """One for each seed; empty while the learning rate has not been chosen."""
        base, chosen = self._settings(results, algorithm), self.choose(results, algorithm)
        if base is None or chosen is None:
            return []
        every = max(1, self.rounds // 4)
        return [
            Job(
                f"{_slug(algorithm)}-s{seed}",
                {**base, algorithm.tuned: chosen, "run.seed": seed, "run.evaluate_every": every},
                self.rounds,
            )
            for seed in self.seeds
        ]

    def client_rate(self, results: Results, algorithm: Algorithm) -> float | None:
        """The clients' learning rate: chosen, or that of FedAvg where the server's is chosen."""
        is_own = algorithm.tuned == "train.learning_rate"
        return self.choose(results, algorithm if is_own else FEDAVG)

    def _settings(self, results: Results, algorithm: Algorithm) -> dict[str, Any] | None:
        base = {**self.settings, **algorithm.settings}
        if algorithm.tuned == "train.learning_rate":
            return base
        rate = self.client_rate(results, algorithm)
        return None if rate is None else {**base, "train.learning_rate": rate}


def _slug(algorithm: Algorithm) -> str:
    weights = "-uniform" if "aggregation.weighting" in algorithm.settings else ""
    return f"{algorithm.name.lower()}{weights}"


FULL = Comparison()
#: What ``--quick`` measures: the excerpt, few rounds, one seed, nothing tuned.
QUICK = Comparison(
    rounds=5,
    seeds=(1,),
    tuning_rounds=0,
    settings={**FULL.settings, "data.source": "excerpt", "train.batch_size": 20},
)


def all_jobs(results: Results, quick: bool, more: bool = False) -> Iterator[Job]:
    """
    What to measure, in order; each is asked for when those before it have been measured.

    The first seed of each row comes first, and further seeds last.

    Args:
        results: What has been measured.
        quick: A part alone.
        more: Also what does not fit into an hour.
    """
    targets = (QUICK_TARGET,) if quick else TARGETS
    comparison = QUICK if quick else FULL
    for target in targets:
        yield from target.jobs[:1]
    for algorithm in ALGORITHMS:
        yield from comparison.tuning(results, algorithm).values()
        yield from comparison.jobs(results, algorithm)
    if not quick:
        for target in targets:
            yield from target.jobs[1:]
    if more:
        for target in TARGETS:
            yield from target.more_jobs
