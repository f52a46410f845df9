"""
The two loops over a data set: local SGD and evaluation. They know no task, run or round.

The order of samples comes from an explicit generator, and a ``TensorDataset`` is indexed as a whole
batch at a time: a ``DataLoader`` would collate it sample by sample, which costs more than the
training step of a small model.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from fl_queue import metrics
from fl_queue.errors import ConfigError, DataError
from fl_queue.training.classification import Scoring, loss_sums
from fl_queue.training.data_loading import (
    Collate,
    LoaderSettings,
    call,
    iterate_batches,
    pair,
    seed_torch,
    to_device,
)
from fl_queue.training.local_rule import LocalRule
from fl_queue.training.mixed_precision import Precision
from fl_queue.training.model_tensors import BATCH_NORM_LAYERS
from fl_queue.training.plain_sgd import PlainSGD
from fl_queue.training.row_floor import check_batch

Samples = Dataset[Any]
#: Mean loss of a batch of what the model returns, and of targets.
Loss = Callable[[Any, Any], Tensor]

#: Most samples at a time when evaluating.
EVALUATION_BATCH = 256
#: So many times a training's batch fit where that fits, as no gradients are kept.
_AS_LARGE = 4
#: Marks a module that stays in evaluation mode while its model is trained.
_STAYS = "_flq_stays_in_evaluation"
_log = logging.getLogger(__name__)


def size_of(dataset: Samples) -> int:
    """Number of samples; torch's ``Dataset`` itself declares no length."""
    return len(cast(Sized, dataset))


def part_of(dataset: Samples, most: int, seed: int) -> Samples:
    """
    At most so many samples of a data set, drawn by a seed, in their order.

    Args:
        most: 1 or more; a data set that is no larger is returned as it is.
        seed: The same draws the same samples.
    """
    count = size_of(dataset)
    if count <= most:
        return dataset
    drawn = np.random.Generator(np.random.PCG64(seed)).permutation(count)[:most]
    return _whole(Subset(dataset, np.sort(drawn).tolist()))


@dataclass(frozen=True, kw_only=True)
class SgdOptions:
    """
    Options of one training by local SGD.

    Args:
        seed: Decides the order of samples, dropout, and all other random numbers of torch.
        epochs, batch_size: 1 or more.
        learning_rate, momentum, weight_decay: As in ``torch.optim.SGD``.
        accumulate: So many batches make one step, whose gradient is the mean over their samples.
        clip_norm: Largest L2 norm of a step's gradient, before weight decay, momentum and rule; 0: any.
        precision: Of forward passes: ``float32``, ``bfloat16`` or, on a CUDA device, ``float16``;
            parameters and steps are float32.
        device: ``cpu``, ``cuda``, ``cuda:1``, ...
        loader_workers: Processes that read samples beside the training, which changes no bit; not used
            for a ``TensorDataset``.
        collate: Makes (inputs, targets) of a list of samples, which may be of unequal shapes; None: samples
            are stacked, as torch's ``DataLoader`` does.
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
    Train ``model`` in place with minibatch SGD, each epoch in a new random order.

    With BatchNorm a last batch of one sample joins the batch before it, since its statistics
    cannot be computed. A last batch, or a last step, of fewer samples than the site allows joins the one before
    it, too.

    The options may be given one by one::

        local_sgd(model, dataset, loss, seed=1, epochs=2, batch_size=32, learning_rate=0.1)

    Args:
        model: On the options' device; left in training mode, but for the modules that ``as_built`` has marked.
        dataset: Pairs (input, target); or (input, ..., target), for a model of several arguments. An input
            may be a map of names, for a model that takes them as arguments.
        loss: Mean loss of a batch of outputs and targets.
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
    return _Training(model, _whole(dataset), loss, chosen, rule).run(after_epoch)


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
        self._model, self._dataset, self._loss, self._options = model, dataset, loss, options
        seed_torch(options.seed, options.device)
        self._count, self._floor = size_of(dataset), 1 if rule is None else rule.fewest
        self._cuts = _training_cuts(
            model, self._count, options.batch_size, options.accumulate, self._floor
        )
        #: Of each step, the sizes of its batches.
        self._groups = _groups(self._cuts, options.accumulate, self._floor)
        self._optimizer = PlainSGD(
            model,
            options.learning_rate,
            options.momentum,
            options.weight_decay,
            rule,
            options.clip_norm,
        )
        if self._floor > 1:
            self._optimizer.watch(self._count, options.epochs * len(self._groups), options.device)
        self._precision = Precision(options.precision, options.device)
        if rule is not None:
            rule.is_used = True

    def run(self, after_epoch: Callable[[int], None]) -> dict[str, Any]:
        """Train all epochs; the sums of the last one."""
        order = torch.Generator().manual_seed(self._options.seed)
        loss_sum = math.nan
        for epoch in range(1, self._options.epochs + 1):
            into_training(self._model)
            chunks = _cut(torch.randperm(self._count, generator=order), self._cuts)
            loss_sum = self._run_epoch(epoch, chunks)
            after_epoch(epoch)
        if self._optimizer.parts is not None:
            self._optimizer.parts.check(self._floor)
        if self._precision.skipped:
            _log.warning(
                "float16: %d steps were skipped, as their gradients overflowed",
                self._precision.skipped,
            )
        return loss_sums(self._count, loss_sum)

    def _run_epoch(self, epoch: int, chunks: list[Tensor]) -> float:
        """An epoch's sum of losses. Args: ``chunks``: of each batch, the indices of its samples."""
        options = self._options
        reading = LoaderSettings(options.seed, epoch, options.loader_workers, options.collate)
        batches = _batches(self._dataset, chunks, options.device, reading)
        rows = iter(chunks)
        losses: list[Tensor] = []
        for sizes in self._groups:
            losses += self._step(sizes, batches, rows)
        loss_sum = 0.0
        # Read at the end: reading one makes the processor wait for the accelerator, in every step.
        all_sizes = [size for sizes in self._groups for size in sizes]
        for value, size in zip(losses, all_sizes, strict=True):
            loss_sum += value.item() * size
        return loss_sum

    def _step(
        self, sizes: list[int], batches: Iterator[tuple[Any, Any]], rows: Iterator[Tensor]
    ) -> list[Tensor]:
        """One step; the loss of each of its batches."""
        model, optimizer, precision = self._model, self._optimizer, self._precision
        losses: list[Tensor] = []
        model.zero_grad()
        for size in sizes:
            inputs, target = next(batches)
            with precision.forward():
                output = call(model, inputs)
                if optimizer.parts is not None:
                    optimizer.parts.watch(output, next(rows))
                value = self._loss(output, target)
            precision.backward(value if len(sizes) == 1 else value * (size / sum(sizes)))
            losses.append(value.detach())
        skipped = precision.skipped
        precision.step(optimizer)
        if optimizer.parts is not None and precision.skipped > skipped:
            optimizer.parts.skipped()
        return losses


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


def evaluate(
    model: nn.Module,
    dataset: Samples,
    loss: Loss,
    device: str = "cpu",
    loader_workers: int = 0,
    batch_size: int = EVALUATION_BATCH,
    collate: Collate | None = None,
) -> dict[str, Any]:
    """
    Metrics of ``model`` on ``dataset`` as sums; the model is left in evaluation mode.

    Whole-number targets (B,) or (B, 1) are classes where they fit: outputs (B, C) are scores of C
    classes, and outputs (B,) or (B, 1) the log-odds of class 1 (or its probabilities, see
    ``scoring``), of which targets may be 0.0 and 1.0, too. Then there is a ``confusion``, and with
    two classes ``logit_histograms``. With more than ``metrics.MAX_CLASSES`` classes there is
    ``accuracy_sum`` instead. Samples whose target is -100 are passed over. For everything else
    (such as a regression) there is the loss alone.

    Args:
        model: On ``device``.
        dataset: As for ``local_sgd``; it may be empty.
        loss: Mean loss of a batch of outputs and targets.
        device: Where the batches go.
        loader_workers: As in ``local_sgd``.
        batch_size: Of the training: four times as many samples are evaluated at a time, 256 at most.
        collate: As in ``local_sgd``.
    """
    model.eval()
    dataset = _whole(dataset)
    count = size_of(dataset)
    cuts = _cuts(count, min(EVALUATION_BATCH, _AS_LARGE * batch_size))
    parts, scoring = [], Scoring()
    with torch.no_grad():
        reading = LoaderSettings(workers=loader_workers, collate=collate)
        sizes = [end - start for start, end in pairwise([0, *cuts])]
        batches = _batches(dataset, _cut(torch.arange(count), cuts), device, reading)
        for size, (inputs, target) in zip(sizes, batches, strict=True):
            output = call(model, inputs)
            parts.append(scoring.sums(output, target, float(loss(output, target)), size))
    return metrics.merge(parts)


def _training_cuts(
    model: nn.Module, count: int, batch_size: int, accumulate: int, fewest: int
) -> list[int]:
    """
    Ends of the batches of an epoch.

    Raises:
        ConfigError: Batches are too small for BatchNorm, or steps too small for the site.
        DataError: A single sample, and the model has BatchNorm.
    """
    normalised = any(isinstance(module, BATCH_NORM_LAYERS) for module in model.modules())
    # Statistics of BatchNorm are of a batch, and not of a step.
    check_batch(fewest, batch_size, 1 if normalised else accumulate)
    cuts = _cuts(count, batch_size)
    if len(cuts) > 1 and cuts[-1] - cuts[-2] < min(fewest, batch_size):
        del cuts[-2]
    if not normalised:
        return cuts
    if batch_size == 1:
        raise ConfigError(
            "train.batch_size", "1 cannot train a model with BatchNorm; use 2 or more", public=True
        )
    if count == 1:
        raise DataError(
            "training data", "a single sample cannot train a model with BatchNorm", public=True
        )
    if len(cuts) > 1 and cuts[-1] - cuts[-2] == 1:
        del cuts[-2]
    return cuts


def _groups(cuts: list[int], accumulate: int, fewest: int) -> list[list[int]]:
    """Of each step, the sizes of its batches; a last step of too few samples joins the one before it."""
    sizes = [end - start for start, end in pairwise([0, *cuts])]
    groups = [sizes[first : first + accumulate] for first in range(0, len(sizes), accumulate)]
    if len(groups) > 1 and sum(groups[-1]) < fewest:
        groups[-2:] = [groups[-2] + groups[-1]]
    return groups


def _cuts(count: int, batch_size: int) -> list[int]:
    return [*range(batch_size, count, batch_size), count] if count else []


def _cut(order: Tensor, cuts: list[int]) -> list[Tensor]:
    """The indices of each batch: ``order`` (N,), cut at ``cuts``."""
    return [order[start:end] for start, end in pairwise([0, *cuts])]


def _batches(
    dataset: Samples, chunks: Sequence[Tensor], device: str, reading: LoaderSettings
) -> Iterator[tuple[Any, Any]]:
    """Batches of the samples whose indices each chunk has, on ``device``."""
    # A subclass may give other samples than its tensors hold: normalised, or turned.
    if type(dataset) is TensorDataset and len(dataset.tensors) > 1 and reading.collate is None:
        tensors = [tensor.to(device) for tensor in dataset.tensors]
        for chunk in chunks:
            chosen = chunk.to(device)
            yield pair([tensor[chosen] for tensor in tensors])
        return
    for batch in iterate_batches(dataset, [chunk.tolist() for chunk in chunks], reading):
        inputs, target = pair(batch)
        yield to_device(inputs, device), to_device(target, device)


def joined(datasets: Sequence[Samples]) -> Samples:
    """The samples of all data sets as one, in their order; a ``TensorDataset`` where all are such."""
    wholes = [_whole(dataset) for dataset in datasets]
    found = [whole.tensors for whole in wholes if type(whole) is TensorDataset]
    if len(found) == len(wholes) and wholes:
        return TensorDataset(*(torch.cat(parts) for parts in zip(*found, strict=True)))
    return ConcatDataset(wholes)


def _whole(dataset: Samples) -> Samples:
    """A part of a ``TensorDataset`` (of ``random_split``) as one of its own, for speed."""
    if type(dataset) is Subset and type(dataset.dataset) is TensorDataset:
        chosen = torch.as_tensor(dataset.indices, dtype=torch.int64)
        return TensorDataset(*(tensor[chosen] for tensor in dataset.dataset.tensors))
    return dataset
