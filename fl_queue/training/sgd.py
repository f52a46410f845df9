"""
Local SGD over a data set. It knows no task, run or round.

The order of samples comes from an explicit generator.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from fl_queue import metrics
from fl_queue.training import memory
from fl_queue.training.batches import BatchPass, Forward, Items, Loss, fetch, items_in, leaves
from fl_queue.training.classification import loss_sums
from fl_queue.training.collation import Collate
from fl_queue.training.data_loading import LoaderSettings, seed_torch
from fl_queue.training.evaluation import evaluate
from fl_queue.training.joint_norms import JointNorms
from fl_queue.training.local_rule import LocalRule
from fl_queue.training.local_step import LocalStep, StepSettings
from fl_queue.training.mixed_precision import Precision
from fl_queue.training.optimizers import Maker, Recipe
from fl_queue.training.ranks import Ranks
from fl_queue.training.sample_sets import Samples, cut, joined, part_of, size_of, whole
from fl_queue.training.schedules import Schedule
from fl_queue.training.step_cuts import step_groups, training_cuts

__all__ = [
    "LocalRule",
    "Loss",
    "Samples",
    "SgdOptions",
    "as_built",
    "evaluate",
    "into_training",
    "joined",
    "local_sgd",
    "part_of",
    "size_of",
]

#: Marks a module that stays in evaluation mode while its model is trained.
_STAYS = "_flq_stays_in_evaluation"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SgdOptions:
    """
    Options of one local training.

    Args:
        seed: Decides the order of samples, dropout, and all other random numbers of torch.
        epochs, batch_size: 1 or more.
        learning_rate, momentum, weight_decay: As in ``torch.optim``.
        accumulate: So many batches make one step, whose gradient is the mean over their samples.
        clip_norm: Largest L2 norm of a step's gradient, before weight decay, momentum and rule; 0: any.
        precision: Of forward passes: ``float32``, ``bfloat16`` or, on a CUDA device, ``float16``;
            parameters and steps are float32.
        device: ``cpu``, ``cuda``, ``cuda:1``, ...
        loader_workers: Processes that read samples beside the training, which changes no bit; not used
            for a ``TensorDataset``.
        collate: Makes a batch of a list of samples, which may be of unequal shapes; None: samples
            are stacked, as torch's ``DataLoader`` does.
        forward, items: As of ``batches.BatchHooks``.
        optimizer, optimizer_options, no_decay, schedule, warmup, ema: As ``[train]`` has them.
        own_optimizer: Makes the optimizer, if ``optimizer`` is ``module:name``.
        param_groups: As ``Task.param_groups``.
        ranks: The processes that train the model together, of which each batch is split; None: this one alone.
    """

    seed: int
    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    accumulate: int = 1
    clip_norm: float = 0.0
    precision: str = "float32"
    device: str = "cpu"
    loader_workers: int = 0
    collate: Collate | None = None
    forward: Forward | None = None
    items: Items | None = None
    optimizer: str = "sgd"
    optimizer_options: Mapping[str, Any] = field(default_factory=dict)
    own_optimizer: Maker | None = None
    no_decay: Sequence[str] = ()
    schedule: str = "constant"
    warmup: float = 0.0
    ema: float = 0.0
    param_groups: Callable[[nn.Module], Any] | None = None
    ranks: Ranks | None = None

    def steps(self, count: int, precision: Precision | None = None) -> StepSettings:
        """
        Settings of the optimizer's steps.

        Args:
            count: How many there are in the round.
            precision: Of the training; needed where a client keeps the state of its optimizer.
        """
        recipe = Recipe(
            name=self.optimizer,
            learning_rate=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            options=self.optimizer_options,
            device=self.device,
            own=self.own_optimizer,
        )
        return StepSettings(
            recipe=recipe,
            schedule=Schedule(self.schedule, self.warmup, count),
            clip_norm=self.clip_norm,
            no_decay=self.no_decay,
            ema=self.ema,
            param_groups=self.param_groups,
            scaled=precision,
        )


def local_sgd(
    model: nn.Module,
    dataset: Samples,
    loss: Loss,
    options: SgdOptions | None = None,
    *,
    after_epoch: Callable[[int], None] = lambda epoch: None,
    rule: LocalRule | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """
    Train ``model`` in place with minibatches, each epoch in a new random order; by SGD unless the options name another.

    With BatchNorm a last batch of one sample joins the batch before it, since its statistics
    cannot be computed. A last batch, or a last step, of fewer samples than the site allows joins the one before
    it, too.

    The options may be given one by one::

        local_sgd(model, dataset, loss, seed=1, epochs=2, batch_size=32, learning_rate=0.1)

    Args:
        model: On the options' device; left in training mode, but for the modules that ``as_built`` has marked.
        dataset: Pairs (input, target), or samples of another form in the table of ``batches``.
        loss: Mean loss of a batch, of outputs and targets; of outputs and the batch, if its second argument
            is called ``batch``.
        options: Default: made from ``settings``.
        after_epoch: Called with the number of the epoch just done, from 1.
        rule: The strategy's addition to each gradient, and the site's floor of samples.
        **settings: Fields of ``SgdOptions``, in place of those of ``options``.

    Returns:
        Sums of the last epoch, each loss as it was before its step: ``num_examples``, and
        ``loss_sum`` unless it is not finite.

    Raises:
        ConfigError: ``train.batch_size`` is 1 and the model has BatchNorm; or float16 without a GPU;
            or a step has fewer samples than the site allows.
        UpdateWithheld: Fewer samples than the site allows had a part in the result.
        DataError: A single sample, and the model has BatchNorm.

    Source:
        McMahan et al. 2017, arXiv 1602.05629, Algorithm 1 (ClientUpdate). Clipping: Pascanu et al.
        2013, arXiv 1211.5063, Algorithm 1.
    """
    chosen = SgdOptions(**settings) if options is None else replace(options, **settings)
    return _Training(model, whole(dataset), loss, chosen, rule).run(after_epoch)


class _Training:
    """One training by local SGD. Args: as of ``local_sgd``."""

    def __init__(
        self,
        model: nn.Module,
        dataset: Samples,
        loss: Loss,
        options: SgdOptions,
        rule: LocalRule | None,
    ) -> None:
        self._model, self._dataset, self._options = model, dataset, options
        self._pass = BatchPass(model, loss, options.forward)
        self._ranks = options.ranks
        #: What is at work, for the error of memory that is not there.
        self._part = "a batch"
        seed = options.seed if self._ranks is None else self._ranks.own_seed(options.seed)
        seed_torch(seed, options.device)
        self._count, self._floor = size_of(dataset), 1 if rule is None else rule.fewest
        self._cuts = training_cuts(
            model, self._count, options.batch_size, options.accumulate, self._floor
        )
        #: Of each step, the sizes of its batches.
        self._groups = step_groups(self._cuts, options.accumulate, self._floor)
        self._precision = Precision(options.precision, options.device)
        settings = options.steps(options.epochs * len(self._groups), self._precision)
        self._optimizer = LocalStep(model, settings, rule)
        if self._floor > 1:
            self._optimizer.watch(self._count, options.device)
        if rule is not None:
            rule.is_used = True
            rule.seen.update(self._optimizer.parameters)
        self._norms = None if self._ranks is None else JointNorms(model, self._ranks)
        if self._ranks is not None:
            # Otherwise they would wait for each other, or add up gradients of other steps.
            self._ranks.check_equal("the number of training samples", [self._count, self._cuts])

    def run(self, after_epoch: Callable[[int], None]) -> dict[str, Any]:
        """Train all epochs; the sums of the last one."""
        with nullcontext() if self._norms is None else self._norms.joined():
            sums = self._run_epochs(after_epoch)
        if self._ranks is not None:
            self._ranks.check_same(self._model)
        return sums

    def _run_epochs(self, after_epoch: Callable[[int], None]) -> dict[str, Any]:
        order = torch.Generator().manual_seed(self._options.seed)
        loss_sum, items = math.nan, 0
        for epoch in range(1, self._options.epochs + 1):
            into_training(self._model)
            chunks = cut(torch.randperm(self._count, generator=order), self._cuts)
            loss_sum, items = self._run_epoch(epoch, chunks)
            after_epoch(epoch)
        self._optimizer.finish()
        if self._optimizer.parts is not None:
            if self._ranks is not None:
                self._optimizer.parts.join(self._ranks.sum)
            self._optimizer.parts.check(self._floor)
        if self._precision.skipped:
            _log.warning(
                "float16: %d steps were skipped, as their gradients overflowed",
                self._precision.skipped,
            )
        sums = loss_sums(self._count, loss_sum)
        is_counted = self._options.items is not None and "loss_sum" in sums
        return sums | ({metrics.LOSS_ITEMS: items} if is_counted else {})

    def _run_epoch(self, epoch: int, chunks: list[Tensor]) -> tuple[float, int]:
        """An epoch's sum of losses, and of how many items. Args: ``chunks``: of each batch, the indices of its samples."""
        options, ranks = self._options, self._ranks
        reading = LoaderSettings(options.seed, epoch, options.loader_workers, options.collate)
        parts = [(chunk, len(chunk)) if ranks is None else ranks.part(chunk) for chunk in chunks]
        chunks, counts = [rows for rows, _ in parts], iter([count for _, count in parts])
        batches = fetch(self._dataset, chunks, options.device, reading)
        rows = iter(chunks)
        losses: list[tuple[Tensor, int]] = []
        for sizes in self._groups:
            mine = [next(counts) for _ in sizes]
            try:
                losses += self._step(mine, sum(sizes), batches, rows)
            except (MemoryError, RuntimeError) as exc:
                if (lack := memory.error_of(exc, self._part)) is not None:
                    raise lack from exc
                raise
        # Read at the end: reading one makes the processor wait for the accelerator, in every step.
        loss_sum = 0.0
        for value, items in losses:
            loss_sum += value.item() * items
        total = sum(items for _, items in losses)
        if ranks is not None:
            loss_sum, of_all = ranks.totals(loss_sum, total)
            total = int(of_all)
        return loss_sum, total

    def _step(
        self, sizes: list[int], whole: int, batches: Iterator[Any], rows: Iterator[Tensor]
    ) -> list[tuple[Tensor, int]]:
        """
        One step.

        Args:
            sizes: Samples of its batches that count in this process.
            whole: Samples of the step in all processes.

        Returns:
            The mean loss of each batch here, and over how many items.
        """
        model, optimizer, precision = self._model, self._optimizer, self._precision
        losses: list[tuple[Tensor, int]] = []
        model.zero_grad()
        self._part = "a batch"
        weighed, total = self._weighed(sizes, whole, batches)
        is_plain = len(sizes) == 1 and self._ranks is None
        for (batch, items), size in zip(weighed, sizes, strict=True):
            if self._norms is not None:
                self._norms.counts = size > 0
            self._part = "forward"
            with precision.forward():
                output = self._pass.output(batch)
                if optimizer.parts is not None:
                    optimizer.parts.watch(output, next(rows))
                value = self._pass.loss(output, batch)
            self._part = "backward"
            # The mean over no items is not a number.
            if items:
                precision.backward(value if is_plain else value * (items / total))
                losses.append((value.detach(), items))
            elif self._norms is not None:
                # The other processes' layers wait for the gradients of this one's.
                precision.backward(_nothing(output))
            self._part = "a batch"
        self._part = "the optimizer"
        if self._ranks is not None:
            self._ranks.sum_gradients(optimizer.parameters)
        skipped = precision.skipped
        precision.step(optimizer)
        if precision.skipped > skipped:
            optimizer.skipped()
        return losses

    def _weighed(
        self, sizes: list[int], whole: int, batches: Iterator[Any]
    ) -> tuple[Iterator[tuple[Any, int]], int]:
        """The batches of a step with their weights in it, and the sum of the weights in all processes."""
        count = self._options.items
        if count is None:
            return ((next(batches), size) for size in sizes), whole
        held = [next(batches) for _ in sizes]
        # A process without a sample of the batch holds one that does not count.
        weights = [
            items_in(count, batch) if size else 0 for batch, size in zip(held, sizes, strict=True)
        ]
        total = sum(weights)
        if self._ranks is not None:
            total = int(self._ranks.totals(total)[0])
        return zip(held, weights, strict=True), total


def _nothing(output: Any) -> Tensor:
    """Zero, as a loss of an output."""
    found = [
        one.float().sum() for one in leaves(output) if isinstance(one, Tensor) and one.requires_grad
    ]
    return torch.stack(found).sum() * 0.0


def as_built(model: nn.Module) -> nn.Module:
    """
    Remember which modules of a freshly built model are in evaluation mode, such as a frozen BatchNorm.

    A model that is in that mode as a whole was only loaded so, as pretrained ones are.
    """
    if model.training:
        for module in model.modules():
            if not module.training:
                setattr(module, _STAYS, True)
    return model


def into_training(model: nn.Module) -> None:
    """Put a model into training mode, all but the modules that were built in evaluation mode."""
    model.train()
    for module in model.modules():
        if getattr(module, _STAYS, False):
            module.eval()
