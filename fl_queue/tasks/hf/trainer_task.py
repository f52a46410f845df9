"""
A site's ``transformers.Trainer`` as the local training: a round decides its epochs and seeds, and nothing is kept.

Imports torch; transformers and accelerate when a training begins.
"""

from __future__ import annotations

import tempfile
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from fl_queue.config.run_config import RunConfig
from fl_queue.config.schema import TrainSection
from fl_queue.errors import ConfigError
from fl_queue.metrics import finish
from fl_queue.protocol.records import Sums
from fl_queue.tasks import calls
from fl_queue.tasks.base import ClientData, OnEpoch, Task
from fl_queue.tasks.context import ClientContext
from fl_queue.tasks.error_disclosure import class_name
from fl_queue.tasks.hf import models, packages, tables
from fl_queue.training.sgd import size_of

_BY_ARGUMENT = "its trainer has {0}, see arguments(context, {0}=...)"
#: Fields of ``[train]`` that a trainer has in another way, and in which.
_OF_TRAINER = {
    "optimizer": _BY_ARGUMENT.format("optim"),
    "optimizer_options": _BY_ARGUMENT.format("optim_args"),
    "momentum": _BY_ARGUMENT.format("optim_args"),
    "schedule": _BY_ARGUMENT.format("lr_scheduler_type"),
    "warmup": _BY_ARGUMENT.format("warmup_steps"),
    "no_decay": "its trainer leaves out biases and norms by itself",
    "optimizer_state": "its trainer makes a new one in each round",
    "ema": "its trainer has none",
}
#: numpy takes seeds of 32 bits.
_SEEDS = 2**32


class HFTask(Task):
    """
    A task that is trained by a ``transformers.Trainer``; ``build_model``, ``client_data`` and ``trainer`` are needed.

    ::

        class Reviews(HFTask):
            def build_model(self):
                return AutoModelForSequenceClassification.from_pretrained(self.folder("model"))

            def client_data(self, context):
                rows = self.rows(context.data_dir, "train.parquet").map(tokenized)
                train, validation = self.split(np.array(rows["label"]), context)
                return ClientData(rows.select(train), rows.select(validation))

            def trainer(self, model, data, context):
                arguments = self.arguments(context, learning_rate=2e-4)
                return Trainer(model, arguments, self.collate, data.train)

    Validation is that of ``Task.evaluate``. Strategies' terms are added to the gradients at each step of the
    trainer's optimizer; SCAFFOLD, FedNova and q-FedAvg take SGD alone (``optim="sgd"``). The optimizer and its
    schedule are the trainer's: fields of ``[train]`` about them that are not at their defaults are refused.

    Raises:
        ConfigError: ``[train]`` has an optimizer, a schedule or a mean of weights.
    """

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        # Before a task's own module loads anything of them: they are offline from here on.
        packages.transformers()
        _check_defaults(config.train)

    @abstractmethod
    def trainer(self, model: nn.Module, data: ClientData, context: ClientContext) -> Any:
        """
        Return the ``transformers.Trainer`` of one round, which is not used again.

        Args:
            model: To be trained, in place: neither a copy of it nor a wrapper.
            data: Of this site.
            context: Of the round.
        """

    def arguments(self, context: ClientContext, **settings: Any) -> Any:
        """
        Return ``TrainingArguments`` as the config has them: learning rate (constant in a round), batch size, clipping, precision.

        Args:
            context: Of the round.
            **settings: Fields of ``TrainingArguments``, in place of these.
        """
        train = self.config.train
        chosen: dict[str, Any] = {
            # Replaced by a private one before the training.
            "output_dir": tempfile.gettempdir(),
            "learning_rate": context.learning_rate,
            "lr_scheduler_type": "constant",
            "per_device_train_batch_size": context.batch_size,
            "gradient_accumulation_steps": train.accumulate,
            "max_grad_norm": train.clip_norm,
            "weight_decay": train.weight_decay,
            "bf16": train.precision == "bfloat16",
            "fp16": train.precision == "float16",
            "dataloader_num_workers": context.loader_workers,
            "use_cpu": torch.device(context.device).type == "cpu",
            "report_to": "none",
        }
        return packages.transformers().TrainingArguments(**{**chosen, **settings})

    def folder(self, name: str) -> str:
        """
        Return the path of a folder in this machine's data folder, such as a model's, for ``from_pretrained``.

        Raises:
            ConfigError: The name leads out of the data folder, or there is none.
            DataError: There is no such folder.
        """
        return str(models.folder_of({"model": name}, self.config.data.dir, "model"))

    def rows(self, data_dir: str, name: str) -> Any:
        """Read a file or a folder of parquet as a ``datasets.Dataset`` in memory; see ``tables.read``."""
        return tables.read(data_dir, name)

    def collate(self, samples: list[Any]) -> Any:
        """Make a batch by transformers' ``default_data_collator``; override it to pad."""
        return packages.transformers().default_data_collator(samples)

    def train(
        self, model: nn.Module, data: ClientData, context: ClientContext, on_epoch: OnEpoch
    ) -> Sums:
        """
        Train by ``trainer``.

        Raises:
            ConfigError: ``trainer`` returned none, or one that trains another module or on another device; or the model
                is quantised.
        """
        if getattr(model, "is_quantized", False):
            raise models.quantised("run.task")
        with _private_state() as output_dir:
            trainer = self.trainer(model, data, context)
            _check(trainer, model, context, self.config.run.task)
            seed = context.seed_for("train") % _SEEDS
            _decide(trainer, context.epochs, seed, output_dir)
            trainer.add_callback(_reports(self, data, context, on_epoch))
            packages.transformers().set_seed(seed)
            done = trainer.train()
            _check(trainer, model, context, self.config.run.task)
            trainer.accelerator.free_memory()
        count = size_of(data.train)
        return {"num_examples": count, "loss_sum": float(done.training_loss) * count}


def _check_defaults(train: TrainSection) -> None:
    """Raise ConfigError for a field of which a trainer knows nothing."""
    default = TrainSection()
    for name, how in _OF_TRAINER.items():
        if getattr(train, name) != getattr(default, name):
            raise ConfigError(
                f"train.{name}",
                f"an HFTask does not use it: {how}; leave it at its default",
                public=True,
            )


@contextmanager
def _private_state() -> Iterator[str]:
    """
    Yield a folder that is removed; Accelerate's shared state begins anew before and after.

    The first trainer of a process would else decide device and precision of all later ones.
    """
    _reset_shared_state()
    try:
        with tempfile.TemporaryDirectory(prefix="flq-trainer-") as folder:
            yield folder
    finally:
        _reset_shared_state()


def _reset_shared_state() -> None:
    state = packages.accelerate_state()
    state.AcceleratorState._reset_state(reset_partial_state=True)
    state.GradientState._reset_state()


def _check(trainer: Any, model: nn.Module, context: ClientContext, task: str) -> None:
    """Raise ConfigError unless this is a trainer of the round's model, on the site's device."""
    if not isinstance(trainer, packages.transformers().Trainer):
        found = "None" if trainer is None else f"a {class_name(type(trainer))}"
        missing = "; is there a `return`?" if trainer is None else ""
        raise ConfigError(
            "run.task",
            f"trainer() of {task} returned {found}, not a transformers.Trainer{missing}",
            public=True,
        )
    if trainer.model is not model:
        raise ConfigError(
            "run.task",
            f"trainer() of {task} trains another module than the model that it was given; pass that on, and wrap "
            "it (LoRA) in build_model",
            public=True,
        )
    if trainer.args.device.type != torch.device(context.device).type:
        raise ConfigError(
            "run.task",
            f"trainer() of {task} trains on {trainer.args.device}, and the site's device is {context.device}; use "
            "self.arguments(context)",
            public=True,
        )


def _decide(trainer: Any, epochs: int, seed: int, output_dir: str) -> None:
    """Set what a round decides, whatever the trainer's arguments are: nothing is saved, reported or shown."""
    transformers = packages.transformers()
    args = trainer.args
    args.num_train_epochs, args.seed, args.data_seed = epochs, seed, seed
    trainer.accelerator.dataloader_config.data_seed = seed
    args.output_dir, args.save_strategy = output_dir, transformers.trainer_utils.SaveStrategy.NO
    # Validation is the task's, and the best version of a run is the federation's choice.
    args.eval_strategy = transformers.trainer_utils.IntervalStrategy.NO
    args.load_best_model_at_end, args.push_to_hub = False, False
    args.report_to, args.disable_tqdm = [], True
    # More devices than the site's one would be used by DataParallel.
    args._n_gpu = min(args.n_gpu, 1)
    reporters = tuple(transformers.integrations.integration_utils.INTEGRATION_TO_CALLBACK.values())
    shown = (transformers.ProgressCallback, transformers.PrinterCallback, *reporters)
    for one in [*trainer.callback_handler.callbacks]:
        if isinstance(one, shown):
            trainer.remove_callback(one)


def _reports(task: Task, data: ClientData, context: ClientContext, on_epoch: OnEpoch) -> Any:
    """A callback that validates after each epoch, and reports it."""
    base: Any = packages.transformers().TrainerCallback

    class Reports(base):  # type: ignore[misc]
        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            model = kwargs["model"]
            was_training = model.training
            found = finish(calls.evaluated(task, model, data.validation, context))
            model.train(was_training)
            # One that max_steps has cut short is less than half an epoch.
            epoch = max(1, min(round(state.epoch), context.epochs))
            on_epoch(epoch, context.epochs, found)

    return Reports()
