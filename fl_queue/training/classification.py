"""
Classification by outputs and targets: the counts for accuracy, F1 and AUC.

Whatever a model returns and whatever the targets are, an evaluation has its loss; what is of no
classes has nothing else, and the log has the reason. Imports torch.
"""

from __future__ import annotations

import logging
import math
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from fl_queue import metrics
from fl_queue.training.batches import named_logits
from fl_queue.training.scored_rows import ScoredRows

#: The target that ``cross_entropy`` passes over.
IGNORED = -100
_log = logging.getLogger(__name__)

Scale = Literal["log-odds", "probability", "none"]


class Scoring:
    """
    The sums of an evaluation, a batch at a time.

    What single outputs (B,) or (B, 1) are is found out from the first batch's loss: equal to binary
    cross entropy of probabilities they are such, equal to a squared or absolute error they are
    predictions of a number, and else they are log-odds of class 1.

    Args:
        rows: Takes the rows for a report of them; None: there is none.
    """

    def __init__(self, rows: ScoredRows | None = None) -> None:
        self._scale: Scale | None = None
        self._rows = rows

    def sums(
        self, output: Any, target: Any, mean_loss: float, count: int | None = None
    ) -> dict[str, Any]:
        """
        Sums of a batch.

        Args:
            output: What the model returned; its ``logits``, where it has such.
            target: (B, ...), or anything with a length.
            mean_loss: Of the batch; over the samples that are not ``IGNORED``.
            count: Samples of the batch; None: as the target has.
        """
        count = len(target) if count is None else count
        scores = output if isinstance(output, Tensor) else named_logits(output)
        found = self._classes(scores, target, mean_loss)
        if self._rows is not None:
            self._rows.add(found, scores, target)
        if found is None:
            return loss_sums(count, mean_loss * count)
        truth, classes = found
        if len(truth) == 0:
            return {"num_examples": 0}
        return loss_sums(len(truth), mean_loss * len(truth)) | _counts(truth, classes)

    def _classes(
        self, output: Any, target: Any, mean_loss: float
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]] | None:
        """Classes (N,) and scores (N, C), C >= 2, of the samples that count; None: there are none such."""
        if not isinstance(output, Tensor) or not isinstance(target, Tensor):
            _note("the model's output or the target is not a tensor")
            return None
        count = len(target)
        if count == 0 or target.numel() != count or len(output) != count or output.ndim > 2:
            return None
        if output.is_complex() or target.is_complex():
            return None
        if output.numel() == count:
            scores = self._single(output.reshape(-1), target.reshape(-1), mean_loss)
        elif not target.is_floating_point():
            scores = output.to("cpu", torch.float64).numpy()
        else:
            return None
        if scores is None:
            return None
        return _fitting(target.reshape(-1).to("cpu", torch.float64).numpy(), scores)

    def _single(
        self, output: Tensor, target: Tensor, mean_loss: float
    ) -> NDArray[np.float64] | None:
        """Scores (B, 2) of single outputs (B,), whose difference is the log-odds."""
        wide = output.to("cpu", torch.float64)
        if self._scale is None:
            self._scale = _scale(wide, target.to("cpu", torch.float64), mean_loss)
        if self._scale == "none":
            return None
        odds = torch.logit(wide) if self._scale == "probability" else wide
        scores: NDArray[np.float64] = torch.stack([torch.zeros_like(odds), odds], dim=1).numpy()
        return scores


def loss_sums(count: int, loss_sum: float) -> dict[str, Any]:
    """Examples, and their loss if it is finite: what is not cannot be stored, and has no mean either."""
    if math.isfinite(loss_sum):
        return {"num_examples": count, "loss_sum": loss_sum}
    _note("the loss of some samples is not finite", "the loss is")
    return {"num_examples": count}


def _scale(output: Tensor, target: Tensor, mean_loss: float) -> Scale:
    """Scale of single outputs (B,), found from their loss."""

    def is_loss(value: Tensor) -> bool:
        return math.isclose(float(value), mean_loss, rel_tol=1e-3, abs_tol=1e-6)

    if not bool(((target == 0) | (target == 1)).all()):
        return "none"
    if is_loss(functional.binary_cross_entropy_with_logits(output, target)):
        return "log-odds"
    within = bool(((output >= 0) & (output <= 1)).all())
    if within and is_loss(functional.binary_cross_entropy(output, target)):
        return "probability"
    if is_loss(functional.mse_loss(output, target)) or is_loss(functional.l1_loss(output, target)):
        return "none"
    return "log-odds"


def _fitting(
    target: NDArray[np.float64], scores: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]] | None:
    """Targets (B,) as classes, without those that are passed over; None when they are not classes."""
    used = target != IGNORED
    truth = target[used].astype(np.int64)
    if ((truth < 0) | (truth >= scores.shape[1]) | (truth != target[used])).any():
        _note("the targets are not classes from 0 to the number of the model's outputs")
        return None
    return truth, scores[used]


def _counts(truth: NDArray[np.int64], scores: NDArray[np.float64]) -> dict[str, Any]:
    # The highest score; at a tie the lower class, so that log-odds of 0 are class 0.
    predicted = np.nan_to_num(scores, nan=-np.inf).argmax(axis=1)
    classes = scores.shape[1]
    if classes > metrics.MAX_CLASSES:
        return {"accuracy_sum": int((predicted == truth).sum())}
    sums: dict[str, Any] = {"confusion": metrics.confusion(truth, predicted, classes)}
    if classes == 2:
        with np.errstate(invalid="ignore"):
            odds = scores[:, 1] - scores[:, 0]
        sums["logit_histograms"] = metrics.logit_histograms(odds, truth)
    return sums


@lru_cache(maxsize=8)
def _note(reason: str, what: str = "accuracy, f1 and auc are") -> None:
    """Log once in a process which metrics are not computed."""
    _log.warning("%s not computed: %s", what, reason)
