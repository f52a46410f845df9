"""``ClientContext``: everything that a task may know about its client, its round and its site."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypedDict, Unpack

from fl_queue.analyses.base import Limits
from fl_queue.common.seeding import seed_for
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import ConfigError
from fl_queue.tasks.logged_metrics import TrainingLog
from fl_queue.training.determinism import Compute
from fl_queue.training.local_rule import LocalRule
from fl_queue.training.ranks import Ranks
from fl_queue.training.step_hook import LocalTraining


class Place(TypedDict, total=False):
    """Fields of ``ClientContext`` that neither the config nor the round decides."""

    share: int
    shares: int
    data_dir: str
    device: str
    threads: int
    max_examples: int
    min_examples: int
    min_training: int
    min_batch: int
    loader_workers: int
    ranks: Ranks | None
    compiled: bool


@dataclass(frozen=True, kw_only=True)
class ClientContext:
    """
    Everything that a task may know about its client, its round and its site; read-only.

    Args:
        client: Client id.
        run: Name of the run (not its id: a run made again draws the same numbers).
        round: Round number, from 1.
        seed: The run's seed.
        share: Index of the client's share of a data set that is split over clients, from 0.
        shares: How many shares there are.
        data_dir: Folder of this machine's data, the worker's ``--data``; may be empty.
        device: ``cpu``, ``cuda``, ``cuda:1``, ...
        threads: CPU threads torch may use; 0 leaves them as they are.
        max_examples: Most training samples that the site gives; 0: all. The training data that a task
            is handed is cut to so many already.
        min_examples: Fewest examples that the site trains with, or sends metrics of: no task is handed
            a smaller training part, and a smaller validation part is handed over empty.
        min_training: Fewest examples of a training part by the site's policy; it holds where it is more.
        min_batch: Fewest examples of which the site makes a step and an update; ``rule`` has it, too.
        learning_rate: Of this round.
        epochs, batch_size: As the config has them.
        rule: The strategy's addition to local SGD; a task that calls ``sgd.local_sgd`` hands it over.
        training: For a training of the task's own whose optimizer is not torch's: ``add_terms`` before each of its
            steps, ``count_step`` after it. Steps of torch's optimizers are seen without it. None outside a training.
        loader_workers: Processes that read samples beside the training; hand it to ``sgd.local_sgd``.
        ranks: The processes that train together, with ``--devices``; ``sgd.local_sgd`` and ``evaluate`` get it by
            their options. None: this one alone.
        compiled: Whether the model's passes are compiled, as the site asks for with ``--compile``.
        shown: What the site shows of its rows, in an evaluation that has a report of them; None: there is none.
        logged: Numbers that ``log`` has noted; None outside a round's training: they are dropped.
    """

    client: str
    run: str
    round: int
    seed: int
    share: int = 0
    shares: int = 1
    data_dir: str = ""
    device: str = "cpu"
    threads: int = 1
    learning_rate: float
    epochs: int
    batch_size: int
    rule: LocalRule | None = None
    training: LocalTraining | None = None
    max_examples: int = 0
    min_examples: int = 1
    min_training: int = 0
    min_batch: int = 1
    logged: TrainingLog | None = None
    shown: Limits | None = None
    loader_workers: int = 0
    ranks: Ranks | None = None
    compiled: bool = False

    def seed_for(self, purpose: str) -> int:
        """Seed of what is random about this client's job in this round, for one purpose."""
        return seed_for(self.seed, self.run, self.round, self.client, purpose)

    def log(
        self, name: str | None = None, value: Any = None, /, *, examples: int = 1, **values: Any
    ) -> None:
        """
        Note a number of this training: ``log("gap", value)`` or ``log(gap=value)``.

        The mean of a round's calls goes with the update, and is merged over the clients as every
        metric is: curve ``train/gap``. Outside a round's training, such as in a validation, it is
        checked and forgotten. It changes nothing of the model. On an accelerator, a tensor is waited for.

        Args:
            name, value: A lower-case name, and a finite number or a tensor of one.
            examples: How many examples it is the mean over, its weight in the mean; such as ``len(target)``.
            **values: The same, by name.

        Raises:
            ConfigError: A name or a value that cannot be used, or more than 24 names.
        """
        if name is None and not values:
            raise ConfigError("context.log", "nothing is named; give log(name, value)", public=True)
        given = values if name is None else {name: value, **values}
        (TrainingLog() if self.logged is None else self.logged).add(given, examples)

    @property
    def compute(self) -> Compute:
        """Device and threads of the training."""
        return Compute(self.device, self.threads)

    @classmethod
    def of(
        cls,
        config: RunConfig,
        *,
        client: str,
        run: str,
        round_number: int,
        **place: Unpack[Place],
    ) -> ClientContext:
        """
        The context of one job.

        Args:
            config: The run's: seed, learning rate, epochs and batch size are its.
            client, run: As of the class.
            round_number: From 1.
            **place: Share and site, by field; default: one share of all data, on one thread of the CPU.
        """
        return cls(
            client=client,
            run=run,
            round=round_number,
            seed=config.run.seed,
            learning_rate=config.learning_rate(round_number),
            epochs=config.train.epochs,
            batch_size=config.train.batch_size,
            **place,
        )
