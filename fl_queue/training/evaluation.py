"""Evaluation of a model on a data set, as sums that add up over batches and clients. Imports torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from fl_queue import metrics
from fl_queue.analyses.base import Limits
from fl_queue.metrics.kinds import Classification, Declared, Regression
from fl_queue.training.batches import (
    BatchHooks,
    BatchPass,
    Loss,
    fetch,
    items_in,
    leaves,
    logits_of,
    takes_batch,
    target_of,
)
from fl_queue.training.classification import Scoring, loss_sums
from fl_queue.training.collation import Collate
from fl_queue.training.data_loading import LoaderSettings, untouched_generators
from fl_queue.training.metric_kinds import balanced, kind_sums, own_sums
from fl_queue.training.ranks import Ranks
from fl_queue.training.sample_sets import Samples, cut, cuts_of, size_of, whole
from fl_queue.training.scored_rows import ScoredRows

#: Most samples at a time.
EVALUATION_BATCH = 256
#: So many times a training's batch fit where that fits, as no gradients are kept.
_AS_LARGE = 4
#: Bytes that the outputs of one batch take at most, where that is a matter of its size.
LARGEST_OUTPUT = 256 * 1024**2


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """
    Options of an evaluation by the default loop.

    Args:
        hooks: The task's own functions for batches.
        batch_size: Samples at a time; 0: four times the training's, 256 at most, and halved down to the
            training's until the outputs of a batch take at most 256 MiB, by those of the first sample:
            the same on every machine.
        declared: The task's metrics; None: those of classes, where outputs and targets are such.
        ranks: The processes that share the batches, and all get the sums of all; None: this one alone.
        shown: What the site shows of its rows: then there is a report (``metrics.reports``), within that; None: there
            is none.
    """

    hooks: BatchHooks = field(default_factory=BatchHooks)
    batch_size: int = 0
    declared: Declared | None = None
    ranks: Ranks | None = None
    shown: Limits | None = None


def evaluate(
    model: nn.Module,
    dataset: Samples,
    loss: Loss,
    device: str = "cpu",
    loader_workers: int = 0,
    batch_size: int = EVALUATION_BATCH,
    collate: Collate | None = None,
    options: EvaluationOptions | None = None,
) -> dict[str, Any]:
    """
    Metrics of ``model`` on ``dataset`` as sums; the model is left in evaluation mode.

    Whole-number targets (B,) or (B, 1) are classes where they fit: outputs (B, C) are scores of C
    classes, and outputs (B,) or (B, 1) the log-odds of class 1 (or its probabilities, see
    ``classification``), of which targets may be 0.0 and 1.0, too. Then there is a ``confusion``, and with
    two classes ``logit_histograms``. With more than ``metrics.MAX_CLASSES`` classes there is
    ``accuracy_sum`` instead. Samples whose target is -100 are passed over. For everything else
    (such as a regression) there is the loss alone.

    Args:
        model: On ``device``.
        dataset: As for ``local_sgd``; it may be empty.
        loss: Mean loss of a batch, as for ``local_sgd``.
        device: Where the batches go.
        loader_workers: As in ``local_sgd``.
        batch_size: Of the training.
        collate: As in ``local_sgd``; also one of the options' ``hooks``.
        options: Default: none of its own.
    """
    model.eval()
    chosen = options or EvaluationOptions()
    hooks = chosen.hooks if collate is None else replace(chosen.hooks, collate=collate)
    dataset = whole(dataset)
    count = size_of(dataset)
    passing = BatchPass(model, loss, hooks.forward)
    reading = LoaderSettings(workers=loader_workers, collate=hooks.collate)
    with torch.no_grad():
        size = chosen.batch_size or _batch_size(passing, dataset, batch_size, device, reading)
        chunks = cut(torch.arange(count), cuts_of(count, size))
        mine = _mine(len(chunks), chosen.ranks)
        batches = fetch(dataset, [chunks[index] for index in mine], device, reading)
        scored = _Scored(passing, chosen, hooks)
        parts = [
            scored.sums(batch, len(chunks[index]))
            for index, batch in zip(mine, batches, strict=True)
        ]
    found = metrics.merge(parts if chosen.ranks is None else _of_all(parts, mine, chosen.ranks))
    return found | scored.report(mine)


def _mine(count: int, ranks: Ranks | None) -> list[int]:
    """
    The batches that this process evaluates.

    The first one is everyone's: by it the scale of single outputs is found, see ``Scoring``.
    """
    if ranks is None or not count:
        return [*range(count)]
    return [0, *range(ranks.rank or ranks.count, count, ranks.count)]


def _of_all(parts: list[dict[str, Any]], mine: list[int], ranks: Ranks) -> list[dict[str, Any]]:
    """Sums of all processes' batches in the order of the batches: they add up to the bits of one process."""
    found: dict[int, dict[str, Any]] = {}
    for numbers, sums in ranks.gathered([mine, parts]):
        found.update(zip(numbers, sums, strict=True))
    return [found[number] for number in sorted(found)]


class _Scored:
    """The sums of batches, one after the other. Args: as of ``evaluate``, and its hooks."""

    def __init__(self, passing: BatchPass, options: EvaluationOptions, hooks: BatchHooks) -> None:
        self._passing, self._items, self._options = passing, hooks.items, options
        self._rows = ScoredRows() if options.shown is not None else None
        self._scoring = BatchScoring(options, self._rows)

    def report(self, mine: list[int]) -> dict[str, Any]:
        """The report of all batches, where there is one. Args: ``mine``: those of this process."""
        if self._rows is None or self._options.shown is None:
            return {}
        return self._rows.report(self._options.shown, mine, self._options.ranks)

    def sums(self, batch: Any, samples: int) -> dict[str, Any]:
        """Sums of a batch."""
        output = self._passing.output(batch)
        mean_loss = float(self._passing.loss(output, batch))
        sums = self._scoring.sums(output, batch, mean_loss, samples)
        if self._items is not None:
            sums = _by_items(sums, mean_loss, items_in(self._items, batch))
        return sums


class BatchScoring:
    """
    The sums of an evaluation, a batch at a time.

    Args:
        options: As of ``evaluate``.
        rows: Takes the rows for a report; None: there is none.
    """

    def __init__(self, options: EvaluationOptions, rows: ScoredRows | None = None) -> None:
        self._declared, self._own = options.declared, options.hooks.own_sums
        self._rows, self._scoring = rows, Scoring(rows)
        self._own_takes_batch = self._own is not None and takes_batch(self._own)

    def sums(self, output: Any, batch: Any, mean_loss: float, samples: int) -> dict[str, Any]:
        """
        Sums of a batch.

        Raises:
            ConfigError: Outputs and targets are not of the shapes of a declared kind.
        """
        target = target_of(batch)
        if self._rows is not None:
            self._rows.begin_batch()
        if self._declared is None:
            return self._scoring.sums(output, target, mean_loss, samples)
        scores, found = logits_of(output), loss_sums(samples, mean_loss * samples)
        for kind in self._declared.kinds:
            if isinstance(kind, Classification):
                found |= self._scoring.sums(scores, target, mean_loss, samples)
                found |= balanced(found["confusion"]) if "confusion" in found else {}
            else:
                found |= kind_sums(kind, scores, target)
                if isinstance(kind, Regression) and self._rows is not None:
                    self._rows.add_numbers(scores, target)
        if self._declared.own and self._own is not None:
            returned = self._own(output, batch if self._own_takes_batch else target)
            found |= own_sums(returned, self._declared.own, samples)
        return found


def _by_items(sums: dict[str, Any], mean_loss: float, items: int) -> dict[str, Any]:
    """Sums of a batch whose loss is a mean over items, and not over its samples."""
    kept = {key: value for key, value in sums.items() if key != "loss_sum"}
    total = loss_sums(items, mean_loss * items if items else 0.0)
    return kept | (
        {"loss_sum": total["loss_sum"], metrics.LOSS_ITEMS: items} if "loss_sum" in total else {}
    )


def _batch_size(
    passing: BatchPass, dataset: Samples, trained: int, device: str, reading: LoaderSettings
) -> int:
    """Samples at a time, by the training's batch and the bytes of the first sample's outputs."""
    size = min(EVALUATION_BATCH, _AS_LARGE * trained)
    if size <= trained or size_of(dataset) <= trained:
        return size
    with untouched_generators():
        first = next(
            fetch(dataset, [torch.zeros(1, dtype=torch.int64)], device, reading._replace(workers=0))
        )
        of_one = sum(one.nbytes for one in _tensors(passing.output(first)))
    while size > trained and size * of_one > LARGEST_OUTPUT:
        size = max(trained, size // 2)
    return size


def _tensors(output: Any) -> Iterator[Tensor]:
    return (one for one in leaves(output) if isinstance(one, Tensor))
