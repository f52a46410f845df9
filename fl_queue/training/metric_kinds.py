"""
Sums of the declared kinds of metrics, of one batch's outputs and targets. Imports torch.

Counts are exact; sums of numbers are added in float64. So batches that are cut anywhere, and merged in any
order, give the metrics of the whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fl_queue.errors import ConfigError
from fl_queue.metrics.forms import MAX_LENGTH, MAX_OWN_LENGTH, OwnMetric, key_of
from fl_queue.metrics.kinds import (
    IGNORED,
    Classification,
    Kind,
    Language,
    MultiLabel,
    Regression,
    Segmentation,
)
from fl_queue.training.batch_errors import shapes_of


def kind_sums(kind: Kind, scores: Any, target: Any) -> dict[str, Any]:
    """
    Sums of a batch for one kind, but for those that ``classification.Scoring`` makes.

    Args:
        scores: (B, ...), of the model.
        target: (B, ...).

    Raises:
        ConfigError: They are not of the kind's shapes.
    """
    if isinstance(kind, Classification):
        return {}
    if not isinstance(scores, Tensor) or not isinstance(target, Tensor):
        raise _unfit(kind, scores, target, "tensors")
    if isinstance(kind, MultiLabel):
        return _multilabel(kind, scores, target)
    if isinstance(kind, Regression):
        return _regression(kind, scores, target)
    if isinstance(kind, Segmentation):
        return _segmentation(kind, scores, target)
    return _language(kind, scores, target)


def balanced(confusion: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Sums of the mean of the classes' recalls. Args: ``confusion``: rows the true class."""
    hits = [row[index] for index, row in enumerate(confusion)]
    return {key_of("balanced_accuracy", "macro", "max"): [hits, [sum(row) for row in confusion]]}


def token_count(kind: Language, target: Any) -> int:
    """Number of targets (B, T) that count."""
    return int((target[:, kind.shift :] != IGNORED).sum())


def token_loss(kind: Language, scores: Tensor, target: Tensor) -> Tensor:
    """Mean cross entropy of the tokens that count. Args: ``scores``: (B, T, V); ``target``: (B, T)."""
    flat, truth = _tokens(kind, scores, target)
    return functional.cross_entropy(flat, truth, ignore_index=IGNORED)


def own_sums(returned: Any, metrics: Iterable[OwnMetric], samples: int) -> dict[str, Any]:
    """
    Sums of a task's own metrics.

    Args:
        returned: Of the task's function: name -> a number, or a vector of at most 60.
        samples: Of the batch.

    Raises:
        ConfigError: It is no such mapping, or a metric's sum is missing.
    """
    if not isinstance(returned, Mapping):
        raise ConfigError(
            "run.task",
            f'own_sums returned {type(returned).__name__}; return sums such as {{"hits": n}}',
            public="own_sums returned something else than a mapping of sums",
        )
    plain = {str(name): _plain(str(name), value) for name, value in returned.items()}
    return {one.key: one.sums(plain, samples) for one in metrics}


def _plain(name: str, value: Any) -> Any:
    """A number, or a list of numbers, of what may be of torch or numpy."""
    if isinstance(value, Tensor):
        value = value.detach().to("cpu")
    found = np.asarray(value)
    if found.dtype.kind not in "biuf" or found.ndim > 1 or found.size > MAX_OWN_LENGTH:
        raise ConfigError(
            "metrics",
            f"own_sums returned no number and no vector of at most {MAX_OWN_LENGTH} as {name[:64]}",
            public=f"own_sums returned something else than numbers and vectors of at most {MAX_OWN_LENGTH}",
        )
    if found.dtype.kind == "b":
        found = found.astype(np.int64)
    return found.tolist()


def _multilabel(kind: MultiLabel, scores: Tensor, target: Tensor) -> dict[str, Any]:
    if scores.numel() != target.numel() or target.ndim > 2:
        raise _unfit(kind, scores, target, "scores and targets (B, L)")
    labels = target.shape[1] if target.ndim == 2 else 1
    truth = target.reshape(-1, labels)
    used = truth != IGNORED
    is_true = (truth == 1) & used
    is_found = (scores.reshape(-1, labels) > kind.threshold) & used
    hits = (is_true & is_found).sum(0).cpu().numpy()
    both = 2 * hits
    either = is_true.sum(0).cpu().numpy() + is_found.sum(0).cpu().numpy()
    wrong = int((is_true ^ is_found).sum())
    found: dict[str, Any] = {
        key_of("f1_micro", "ratio", "max"): [int(both.sum()), int(either.sum())],
        key_of("hamming", "ratio", "min"): [wrong, int(used.sum())],
    }
    if labels <= MAX_LENGTH:
        found[key_of("f1_macro", "macro", "max")] = [both.tolist(), either.tolist()]
    return found


def _regression(kind: Regression, scores: Tensor, target: Tensor) -> dict[str, Any]:
    if scores.numel() != target.numel() or scores.is_complex():
        raise _unfit(kind, scores, target, "as many predictions as targets")
    # In float64 on the processor: an accelerator may have none.
    predicted = scores.detach().reshape(-1).to("cpu", torch.float64)
    truth = target.reshape(-1).to("cpu", torch.float64)
    error, centred = predicted - truth, truth - kind.center
    count, squares = len(truth), float(error.square().sum())
    return {
        key_of("mae", "ratio", "min"): [float(error.abs().sum()), count],
        key_of("rmse", "root", "min"): [squares, count],
        key_of("r2", "r2", "max"): [
            squares,
            count,
            float(centred.sum()),
            float(centred.square().sum()),
        ],
    }


def _segmentation(kind: Segmentation, scores: Tensor, target: Tensor) -> dict[str, Any]:
    wanted = "scores (B, C, ...) and targets (B, ...)"
    if scores.numel() == target.numel():
        predicted, classes = (scores > 0).long().reshape(-1), 2
    elif scores.ndim > 2 and scores.numel() // scores.shape[1] == target.numel():
        predicted, classes = scores.argmax(1).reshape(-1), scores.shape[1]
    else:
        raise _unfit(kind, scores, target, wanted)
    truth = target.reshape(-1).long()
    used = truth != IGNORED
    truth, predicted = truth[used], predicted[used]
    if len(truth) and (int(truth.min()) < 0 or int(truth.max()) >= classes):
        raise _unfit(kind, scores, target, f"targets from 0 to {classes - 1}")
    hit = truth == predicted
    counts = [torch.bincount(one, minlength=classes) for one in (truth[hit], predicted, truth)]
    inside, found, there = (one.cpu().numpy() for one in counts)
    sums: dict[str, Any] = {
        key_of("pixel_accuracy", "ratio", "max"): [int(inside.sum()), int(there.sum())]
    }
    if classes <= MAX_LENGTH:
        first = 0 if kind.background else 1
        both = [(2 * inside)[first:].tolist(), (found + there)[first:].tolist()]
        union = [inside[first:].tolist(), (found + there - inside)[first:].tolist()]
        sums |= {key_of("dice", "macro", "max"): both, key_of("iou", "macro", "max"): union}
    return sums


def _language(kind: Language, scores: Tensor, target: Tensor) -> dict[str, Any]:
    flat, truth = _tokens(kind, scores, target)
    used = truth != IGNORED
    count = int(used.sum())
    loss = functional.cross_entropy(flat.float(), truth, ignore_index=IGNORED, reduction="sum")
    hits = int(((flat.argmax(1) == truth) & used).sum())
    return {
        key_of("perplexity", "exp", "min"): [float(loss), count],
        key_of("token_accuracy", "ratio", "max"): [hits, count],
    }


def _tokens(kind: Language, scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Scores (N, V) and targets (N,) of all tokens."""
    if scores.ndim != 3 or target.ndim != 2 or scores.shape[:2] != target.shape:
        raise _unfit(kind, scores, target, "scores (B, T, V) and targets (B, T)")
    ahead = target[:, kind.shift :]
    return scores[:, : ahead.shape[1]].flatten(0, 1), ahead.flatten()


def _unfit(kind: Kind, scores: Any, target: Any, wanted: str) -> ConfigError:
    return ConfigError(
        "metrics",
        f"{kind.kind} wants {wanted}; the model's output is {shapes_of(scores)} and the target "
        f"{shapes_of(target)}; declare another kind, or return other shapes",
        public=True,
    )
