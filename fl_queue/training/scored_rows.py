"""Scores and targets of the rows of an evaluation, from which its report is made. Imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fl_queue.analyses import report_sums
from fl_queue.analyses.base import Limits
from fl_queue.metrics import reports
from fl_queue.metrics.reports.classes import MAX_CLASSES
from fl_queue.training.ranks import Ranks

#: Scores and truth of the classes of a batch, (N, C) and (N,); or predictions and targets, (N,) each.
Rows = tuple[NDArray[np.float64], NDArray[Any]]


class ScoredRows:
    """The rows of an evaluation, by batches: they stay in this process, and its sums leave it."""

    def __init__(self) -> None:
        self._batch = -1
        self._classes: dict[int, Rows] = {}
        self._numbers: dict[int, Rows] = {}

    def begin_batch(self) -> None:
        """Count a batch; what is added next is of it."""
        self._batch += 1

    def add(
        self, found: tuple[NDArray[np.int64], NDArray[np.float64]] | None, output: Any, target: Any
    ) -> None:
        """
        Take a batch.

        Args:
            found: Classes (N,) and scores (N, C); None: it has none.
            output, target: As the model and the data have them.
        """
        if found is not None:
            truth, scores = found
            if len(truth) and scores.shape[1] <= MAX_CLASSES:
                self._classes[self._batch] = (_narrowed(scores), truth)
            return
        is_number = isinstance(target, Tensor) and target.is_floating_point()
        if is_number and isinstance(output, Tensor) and output.numel() == target.numel():
            self.add_numbers(output, target)

    def add_numbers(self, output: Any, target: Any) -> None:
        """Take predictions and targets of a batch, of one number each."""
        if output.numel() != len(target) or output.is_complex() or not output.numel():
            return
        predicted, truth = (
            one.detach().reshape(-1).to("cpu", torch.float64).numpy() for one in (output, target)
        )
        self._numbers[self._batch] = (predicted, truth)

    def report(self, shown: Limits, mine: Sequence[int], ranks: Ranks | None) -> dict[str, Any]:
        """
        The reports of all rows.

        Args:
            shown: What the site shows of them.
            mine: Numbers of this process's batches, in the order in which they were taken.
            ranks: The processes that shared them.

        Raises:
            PolicyRefusal: There are too few rows, or too few of a class.
        """
        made: dict[str, Any] = {}
        if classes := _of_all(self._classes, mine, ranks):
            scores, truth = classes
            if scores.shape[1] == 1:
                made[reports.BINARY] = report_sums.of_binary(scores[:, 0], truth, shown)
            else:
                made[reports.CLASSES] = report_sums.of_classes(scores, truth, shown)
        if numbers := _of_all(self._numbers, mine, ranks):
            words = report_sums.of_numbers(*numbers, shown)
            made |= {} if words is None else {reports.REGRESSION: words}
        return made


def _narrowed(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of two classes the log-odds of class 1, (N, 1)."""
    if scores.shape[1] != 2:
        return scores
    with np.errstate(invalid="ignore"):
        found: NDArray[np.float64] = scores[:, 1:] - scores[:, :1]
    return found


def _of_all(found: dict[int, Rows], mine: Sequence[int], ranks: Ranks | None) -> Rows | None:
    """The rows of all batches, in their order; None: there are none, or batches have different numbers of classes."""
    numbered = {mine[batch]: rows for batch, rows in found.items()}
    if ranks is not None:
        # Each process has the first batch, and a dictionary holds it once.
        plain = [[number, *(one.tolist() for one in rows)] for number, rows in numbered.items()]
        numbered = {
            number: (np.array(scores, np.float64), np.array(truth))
            for part in ranks.gathered(plain)
            for number, scores, truth in part
        }
    batches = [numbered[number] for number in sorted(numbered)]
    if not batches or len({scores.shape[1:] for scores, _ in batches}) > 1:
        return None
    return np.concatenate([one for one, _ in batches]), np.concatenate([one for _, one in batches])
