"""
The ``Task`` base class: a model, its data, and how they are trained.

Imports torch, so only clients and the evaluator import this. One file per built-in task; ``loading``
finds one by its name, ``function`` makes one of a function, ``flower`` of a Flower client. No Redis here.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import default_collate

from fl_queue.config.run_config import RunConfig
from fl_queue.data import partition
from fl_queue.errors import ConfigError, DataError
from fl_queue.metrics import Declared, Language, Metric, declared, finish
from fl_queue.protocol.model_usage import ModelUsage
from fl_queue.protocol.records import Sums
from fl_queue.tasks import task_code
from fl_queue.tasks.context import ClientContext
from fl_queue.tasks.feature_skew import Skew
from fl_queue.training import sgd
from fl_queue.training.batches import (
    BatchHooks,
    Items,
    Loss,
    default_forward,
    logits_of,
    own_loss,
    size_in,
    target_of,
)
from fl_queue.training.evaluation import EvaluationOptions
from fl_queue.training.metric_kinds import token_count, token_loss
from fl_queue.training.optimizers import Maker
from fl_queue.training.sgd import Samples, SgdOptions

#: Called after each epoch: its number from 1, how many there are, finished validation metrics
#: (empty without validation data).
OnEpoch = Callable[[int, int, Mapping[str, float]], None]


@dataclass(frozen=True)
class ClientData:
    """
    A client's own data: data sets of pairs (input, target). ``validation`` may be empty.

    Other forms of samples: see ``fl_queue.training.batches``.

    Args:
        unused: What lies in the data folder and is not used, or not as it is: what it is -> how many of it. Shown at the
            site alone, by ``fl-queue try-task`` and in the log of its worker.
        counts: Numbers of files or texts that are not used, or not as they are, by words of ``site_facts.FILE_KINDS``. They leave
            the site, with its facts before round 1 and with its updates.
    """

    train: Samples
    validation: Samples
    unused: Mapping[str, int] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)


class Task(ABC):
    """
    Model, data and loss of a run. Subclass it for a task of your own.

    Two methods are needed; ``test_data``, ``loss``, ``train`` and ``evaluate`` have defaults for
    classification. A model and two data sets need no class; see ``function``. This is a complete task, in a file ``beans.py``::

        from pathlib import Path
        import numpy as np
        import torch
        from torch import nn
        from torch.utils.data import TensorDataset
        from fl_queue.tasks import ClientContext, ClientData, Task

        class Beans(Task):
            def build_model(self) -> nn.Module:
                return nn.Sequential(nn.Linear(7, 32), nn.ReLU(), nn.Linear(32, 3))

            def client_data(self, context: ClientContext) -> ClientData:
                table = np.load(Path(context.data_dir) / "beans.npy")  # (N, 7 features + class)
                x, y = torch.tensor(table[:, :7]).float(), torch.tensor(table[:, 7]).long()
                train, validation = self.split(y.numpy(), context)
                return ClientData(
                    TensorDataset(x[train], y[train]),
                    TensorDataset(x[validation], y[validation]),
                )

    A config names it with ``run.task = "beans:Beans"``; each client's worker must allow it with
    ``--task-allow beans:Beans``.

    Args:
        config: The run's config; ``[task]`` is at hand as ``self.options``, and ``data["dir"]`` is
            this machine's data folder.
    """

    #: Whether a process may keep the task and its data for the next round; False: each round has a new task object.
    keep: ClassVar[bool] = True
    #: Attributes that change from call to call and that nothing depends on; any other change ends what is kept.
    unmarked: ClassVar[tuple[str, ...]] = ()
    #: Whether ``client_data`` applies ``self.skew``; otherwise configs that ask for it are refused.
    skews: ClassVar[bool] = False
    #: Whether its training may be local SGD, whose steps some strategies correct; otherwise such a
    #: strategy is refused before version 0 is made.
    takes_corrections: ClassVar[bool] = True

    #: Makes the own optimizer that ``train.optimizer`` names; set where the task is loaded.
    own_optimizer: Callable[[], Maker] | None = None

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.options = config.task

    @property
    def code(self) -> Callable[..., Any] | ModuleType:
        """Whose source file ``code_digest`` names."""
        return type(self)

    @abstractmethod
    def build_model(self) -> nn.Module:
        """The model with fresh weights; its shapes must be the same on every machine."""

    @abstractmethod
    def client_data(self, context: ClientContext) -> ClientData:
        """
        The data of one client.

        Raises:
            DataError: It is missing or unreadable.
        """

    def depends_on(self, context: ClientContext) -> Iterable[Path] | None:
        """
        Files and folders that ``client_data`` and ``test_data`` read; they are read again when one has changed.

        None: all of the data folder, and the files that are opened meanwhile. Name those outside the folder that
        libraries in C or Rust open (parquet, HDF5, safetensors). The built-in tasks for idx, csv and image folders
        name their files. What a class names counts for its own ``client_data`` and ``test_data``, and not for
        those of a class derived from it.
        """
        return None

    def test_data(self, data_dir: str) -> Samples | None:
        """The central test set, read by the evaluator; None when there is none."""
        return None

    def check_data(self, data: ClientData) -> Mapping[str, int]:
        """
        Look at all data once, before round 1 and in ``fl-queue try-task``; nothing unless overridden.

        Args:
            data: This site's.

        Returns:
            Further counts, as ``ClientData.counts``.

        Raises:
            DataError: Something of them cannot be used.
        """
        return {}

    def describe(self, data: ClientData) -> Mapping[str, str | Sequence[str]]:
        """
        Facts that must be the same at all sites, by name: lists of names, or a line of text.

        Compared before round 1 (``run.preflight``). Words that the run's ``[task]`` table has leave the
        site; any other is counted, and a check number stands for it. By default the attributes
        ``classes`` and ``columns`` of the data set, as those of torchvision have them.

        Args:
            data: This site's.
        """
        found: dict[str, list[str]] = {}
        dataset: Any = data.train
        while dataset is not None:
            for name in ("classes", "columns"):
                names = getattr(dataset, name, None)
                # Unlike names, the classes of all samples would repeat.
                if isinstance(names, (list, tuple)) and len({*map(str, names)}) == len(names):
                    found.setdefault(name, [str(one) for one in names])
            dataset = getattr(dataset, "dataset", None)  # That of which a ``Subset`` is a part.
        return found

    def collate(self, samples: list[Any]) -> Any:
        """A batch of samples, stacked unless overridden; ``pad`` fills up unequal ones."""
        return default_collate(samples)

    def forward(self, model: nn.Module, batch: Any) -> Any:
        """
        Output of the model for a batch, called as the table of ``fl_queue.training.batches`` has it.

        Override it for batches of any other form.
        """
        return default_forward(model, batch)

    def items(self, batch: Any) -> int:
        """
        Number of items over which the loss of a batch is a mean: its samples, unless overridden.

        It weighs the batches of a step with ``train.accumulate``, and those of an epoch's loss.
        """
        return size_in(batch)

    def loss(self, output: Any, target: Any) -> Tensor:
        """
        Mean loss of a batch.

        Unless overridden the loss that the output has (``output.loss``, ``output["loss"]``), else cross
        entropy of its scores (B, C). An override whose second argument is called ``batch`` is given the
        whole batch, and one that has an argument ``context`` is given that, too:
        ``loss(self, output, target, context=None)``, ``loss(self, output, batch)``.

        Raises:
            DataError: The batch has no target, and the output no loss.
        """
        found = own_loss(output)
        if found is not None:
            return found
        if target is None:
            raise DataError(
                "training data",
                "a batch has no target and the model's output no loss; give the task a loss(output, batch)",
                public=True,
            )
        scores, language = logits_of(output), _language_of(self)
        if language is not None:
            return token_loss(language, scores, target)
        return functional.cross_entropy(scores, target)

    def loss_in(self, context: ClientContext) -> Loss:
        """``loss`` as the loops take it, of outputs and targets, or of outputs and batches."""
        return with_context(self.loss, context)

    def metrics(self) -> Sequence[Metric | str]:
        """
        Metrics of an evaluation beside the loss, the most important first; none unless overridden.

        Kinds by name or as an object with options (``["segmentation"]``, ``[Language(shift=1)]``), and metrics
        of ``own_sums``: see ``fl_queue.metrics``. Without an override the metrics of classes are computed, where
        outputs and targets are such.
        """
        return ()

    def own_sums(self, output: Any, target: Any) -> Mapping[str, Any]:
        """
        Sums of a batch that the ``Ratio``, ``Mean``, ``Root``, ``Exp`` and ``Macro`` of ``metrics`` are of.

        An override whose second argument is called ``batch`` is given the whole batch.

        Returns:
            Name -> a number, or a vector of at most 60 numbers; of at most 24 names.
        """
        return {}

    def training_loss(self, data: ClientData, context: ClientContext) -> Loss:
        """The loss that ``train`` minimises; that of evaluations unless overridden."""
        return self.loss_in(context)

    @property
    def hooks(self) -> BatchHooks:
        """The task's own functions for batches: those that it overrides."""
        return BatchHooks(
            overridden(self, "collate"),
            overridden(self, "forward"),
            overridden(self, "items") or _token_items(self),
            overridden(self, "own_sums"),
        )

    def train(
        self, model: nn.Module, data: ClientData, context: ClientContext, on_epoch: OnEpoch
    ) -> Sums:
        """
        Train ``model`` in place; local SGD unless overridden.

        Draw randomness from torch's global generator, which is seeded, or from
        ``seed_for(context.seed, ...)``, so that a job done again gives the same bytes.

        Returns:
            Sums of the training, such as ``loss_sum``.
        """

        def report(epoch: int) -> None:
            from fl_queue.tasks import calls

            validation = calls.evaluated(
                self, model, data.validation, replace(context, logged=None)
            )
            on_epoch(epoch, context.epochs, finish(validation))

        return sgd.local_sgd(
            model,
            data.train,
            self.training_loss(data, context),
            self.sgd_options(context),
            after_epoch=report,
            rule=context.rule,
        )

    def sgd_options(self, context: ClientContext) -> SgdOptions:
        """Options of local SGD, as the config and the site have them; for a training of the task's own."""
        train = self.config.train
        return SgdOptions(
            seed=context.seed_for("train"),
            epochs=context.epochs,
            batch_size=context.batch_size,
            learning_rate=context.learning_rate,
            momentum=train.momentum,
            weight_decay=train.weight_decay,
            accumulate=train.accumulate,
            clip_norm=train.clip_norm,
            precision=train.precision,
            device=context.device,
            loader_workers=context.loader_workers,
            collate=self.hooks.collate,
            forward=self.hooks.forward,
            items=self.hooks.items,
            optimizer=train.optimizer,
            optimizer_options=train.optimizer_options,
            own_optimizer=self.own_optimizer() if self.own_optimizer is not None else None,
            no_decay=train.no_decay,
            schedule=train.schedule,
            warmup=train.warmup,
            ema=train.ema,
            param_groups=self.param_groups,
            ranks=context.ranks,
        )

    def param_groups(self, model: nn.Module) -> list[dict[str, Any]] | None:
        """
        Groups of parameters that are trained with options of their own; None: those of ``train.no_decay``.

        Each is a table as ``torch.optim`` takes it: ``params``, and options of the optimizer that differ from
        the config's. ``lr_factor`` is a factor of the round's learning rate. Every parameter that is not frozen is in
        one of the groups::

            def param_groups(self, model):
                return [
                    {"params": model.head.parameters()},
                    {"params": model.body.parameters(), "lr_factor": 0.1},
                ]
        """
        return None

    def evaluate(self, model: nn.Module, dataset: Samples, context: ClientContext) -> Sums:
        """Metrics of ``model`` on ``dataset`` as sums, by keys as in ``fl_queue.metrics``."""
        return sgd.evaluate(
            model,
            dataset,
            self.loss_in(context),
            context.device,
            context.loader_workers,
            context.batch_size,
            options=EvaluationOptions(
                hooks=self.hooks,
                batch_size=self.config.train.evaluation_batch,
                declared=declared_of(self),
                ranks=context.ranks,
                shown=context.shown,
            ),
        )

    def usage(self) -> ModelUsage:
        """
        Use of the model outside fl-queue, for ``fl-queue export``; override it for labels and units.

        Raises:
            ConfigError, DataError: It depends on data that are not here.
        """
        return ModelUsage(
            "a batch of what the task's data sets have first, as float32; (B, ...)",
            "what the task's model returns",
        )

    def example_input(self) -> Tensor | None:
        """
        An input of the model, (1, ...), to export it with; None: a sample of the data is taken.

        Raises:
            ConfigError, DataError: It depends on data that are not here.
        """
        return None

    def skew(self, context: ClientContext) -> Skew:
        """
        Difference of this client's images from the data set's (``data.noise``, ``data.rotation``).

        A task that calls its ``apply`` on its training and validation data declares it by
        ``skews = True``.
        """
        return Skew.of(
            self.config.data,
            seed=context.seed,
            client=context.client,
            share=context.share,
            shares=context.shares,
        )

    def split(
        self,
        labels: NDArray[np.int64],
        context: ClientContext,
        owners: NDArray[Any] | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """
        The client's training and validation samples, by the ``[data]`` section.

        Args:
            labels: (N,) classes of the samples on this machine.
            context: Whose samples.
            owners: (N,) whose each of them is, a name or a number; for the partition ``natural``.

        Returns:
            Sorted, disjoint index arrays.

        Raises:
            ConfigError: There is no such share, or the split is impossible.
        """
        return partition.client_split(
            labels,
            self.config.data,
            seed=context.seed,
            client=context.client,
            share=context.share,
            shares=context.shares,
            owners=owners,
        )


def overridden(task: Task, name: str) -> Any:
    """A method of a task, or None if it is the default; an attribute None stands for the default, too."""
    found = getattr(task, name)
    return None if getattr(found, "__func__", None) is getattr(Task, name) else found


def declared_of(task: Task) -> Declared | None:
    """
    The checked metrics of a task; None when it declares none.

    Raises:
        ConfigError: ``metrics`` returns something else than a list of metrics.
    """
    found: Any = task.metrics()
    if isinstance(found, str) or not isinstance(found, Sequence):
        what = f"metrics() returned {type(found).__name__}"
        rule = 'return a list, such as ["regression"]'
        raise ConfigError("run.task", f"{what}; {rule}", public=f"metrics() is no list; {rule}")
    return declared(found) if found else None


def _language_of(task: Task) -> Language | None:
    found = declared_of(task)
    kinds = found.kinds if found is not None else ()
    return next((one for one in kinds if isinstance(one, Language)), None)


def _token_items(task: Task) -> Items | None:
    """The number of tokens of a batch, where the task's metrics are of language."""
    language = _language_of(task)
    return None if language is None else lambda batch: token_count(language, target_of(batch))


def with_context(loss: Callable[..., Tensor], context: ClientContext) -> Loss:
    """A loss that is given the context, if it has an argument of that name."""
    try:
        takes_it = "context" in inspect.signature(loss).parameters
    except (TypeError, ValueError):  # One without a signature, written in C.
        return loss
    return partial(loss, context=context) if takes_it else loss


def code_digest(task: Task) -> str:
    """BLAKE3 (hex) of the source file of the task's code, as it was imported; empty when it has none (a REPL)."""
    return task_code.imported_digest(task.code)
