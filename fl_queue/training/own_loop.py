"""
The parts of ``local_sgd`` for a training loop of a task's own: batches, optimizer, steps.

Imports torch. No Redis here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fl_queue.errors import ConfigError
from fl_queue.training.batches import fetch, items_in
from fl_queue.training.data_loading import LoaderSettings, seed_torch
from fl_queue.training.local_rule import LocalRule
from fl_queue.training.local_step import LocalStep
from fl_queue.training.mixed_precision import Precision
from fl_queue.training.optimizers import TorchUpdater
from fl_queue.training.sample_sets import Samples, cut, size_of, whole
from fl_queue.training.sgd import SgdOptions, into_training
from fl_queue.training.step_cuts import step_groups, training_cuts


@dataclass(frozen=True)
class _Place:
    """
    Place of a batch in its step.

    Args:
        weight: Of its mean loss in the step's, 0 to 1.
        is_last: Whether the step follows it.
    """

    weight: float
    is_last: bool


class OwnLoop:
    """
    One training by a loop of a task's own.

    Args:
        model: In training.
        options: As ``local_sgd`` takes them.
        rule: The strategy's terms.
    """

    def __init__(self, model: nn.Module, options: SgdOptions, rule: LocalRule | None) -> None:
        self._model, self._options, self._rule = model, options, rule
        self._precision = Precision(options.precision, options.device)
        self._order = torch.Generator().manual_seed(options.seed)
        self._epoch = 0
        #: Steps of all epochs, known from the first ``batches`` on.
        self._count: int | None = None
        self._place: _Place | None = None
        self._batches_seen = 0
        self._steps: list[LocalStep] = []

    def batches(self, dataset: Samples) -> Iterator[Any]:
        """As of ``LocalTraining``."""
        options, dataset, model = self._options, whole(dataset), self._model
        fewest = 1 if self._rule is None else self._rule.fewest
        cuts = training_cuts(
            model, size_of(dataset), options.batch_size, options.accumulate, fewest
        )
        groups = step_groups(cuts, options.accumulate, fewest)
        if self._count is None:
            self._count = options.epochs * len(groups)
            seed_torch(options.seed, options.device)
        self._epoch += 1
        into_training(model)
        chunks = cut(torch.randperm(cuts[-1], generator=self._order), cuts)
        reading = LoaderSettings(options.seed, self._epoch, options.loader_workers, options.collate)
        return self._placed(groups, fetch(dataset, chunks, options.device, reading))

    def _placed(self, groups: list[list[int]], batches: Iterator[Any]) -> Iterator[Any]:
        """The batches, each with its place while a loop has it."""
        count = self._options.items
        try:
            for sizes in groups:
                weights, chosen = sizes, batches
                if count is not None:
                    held = [next(batches) for _ in sizes]
                    weights, chosen = [items_in(count, one) for one in held], iter(held)
                total = sum(weights) or 1
                for index, weight in enumerate(weights):
                    batch = next(chosen)
                    self._place = _Place(weight / total, index + 1 == len(weights))
                    yield batch
        finally:
            # Also where the loop leaves them: a batch of its own that follows has no place among them.
            self._place = None

    def optimizer(self, model: nn.Module) -> Optimizer:
        """As of ``LocalTraining``."""
        if self._options.ema:
            raise ConfigError(
                "train.ema",
                "the mean of the weights follows the steps of context.training.step(loss), which makes its optimizer "
                "itself; leave out context.training.optimizer, or set it to 0",
                public=True,
            )
        made = self._made(model, as_torch=True)
        assert isinstance(made.updater, TorchUpdater)
        return made.updater.optimizer

    def _made(self, model: nn.Module, *, as_torch: bool = False) -> LocalStep:
        settings = self._options.steps(self._count or 0, self._precision)
        if as_torch:
            settings = replace(settings, recipe=replace(settings.recipe, as_torch=True))
        made = LocalStep(model, settings, self._rule)
        self._steps.append(made)
        return made

    def forward(self) -> AbstractContextManager[Any]:
        """As of ``LocalTraining``."""
        return self._precision.forward()

    def step(self, loss: Tensor) -> bool:
        """As of ``LocalTraining``."""
        place = self._place or self._counted()
        stepping = self._stepping()
        # The mean over no items is not a number.
        if place.weight:
            self._precision.backward(loss if place.weight == 1.0 else loss * place.weight)
        if not place.is_last:
            return False
        skipped = self._precision.skipped
        self._precision.step(stepping)
        if self._precision.skipped > skipped:
            stepping.skipped()
        self._model.zero_grad()
        return True

    def _counted(self) -> _Place:
        """Place of a batch that is none of ``batches``."""
        accumulate = self._options.accumulate
        self._batches_seen += 1
        return _Place(1 / accumulate, self._batches_seen % accumulate == 0)

    def _stepping(self) -> LocalStep:
        """What makes the steps; made with the first of them."""
        options = self._options
        has_schedule = options.schedule != "constant" or bool(options.warmup)
        if has_schedule and self._count is None:
            raise ConfigError(
                "train.schedule",
                "it needs the number of steps; take the batches of context.training.batches(dataset)",
                public=True,
            )
        if len(self._steps) > 1:
            raise ConfigError(
                "run.task",
                "train() has several of context.training.optimizer, so context.training.step(loss) does not know which "
                "to step; step them themselves",
                public=True,
            )
        made = self._steps[0] if self._steps else self._made(self._model)
        if has_schedule:
            made.set_count(self._count or 0)
        if self._rule is not None:
            self._rule.seen.update(made.parameters)
        return made

    def finish(self) -> None:
        """As of ``LocalTraining``."""
        for one in self._steps:
            one.finish()
        if self._rule is not None and self._steps:
            self._rule.is_used = True
