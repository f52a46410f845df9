"""Each kind of metric, of batches cut anywhere and merged in any order, beside scikit-learn and numpy of the whole."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as oracle
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from fl_queue import metrics
from fl_queue.metrics import Exp, Language, Macro, Mean, Ratio, Regression, Root, Segmentation
from fl_queue.training.batches import BatchHooks
from fl_queue.training.evaluation import EvaluationOptions, evaluate

SIZES = st.integers(1, 12)
SEEDS = st.integers(0, 2**31 - 1)


def zero(output: Any, target: Any) -> Tensor:
    return torch.zeros(())


def of_parts(
    seed: int, scores: Tensor, target: Tensor, declared: list[Any], own: Any = None
) -> dict[str, float]:
    """Finished metrics of a data set that is cut over clients and batches, each merged in a random order."""
    drawn = random.Random(seed)
    bounds = sorted(drawn.sample(range(1, len(target)), k=min(2, len(target) - 1)))
    parts = []
    for start, end in zip([0, *bounds], [*bounds, len(target)], strict=True):
        options = EvaluationOptions(
            hooks=BatchHooks(own_sums=own),
            declared=metrics.declared(declared),
            batch_size=drawn.randint(1, 4),
        )
        data = TensorDataset(scores[start:end], target[start:end])
        sums = evaluate(nn.Identity(), data, zero, options=options)
        metrics.check(sums)
        parts.append(sums)
    found = metrics.finish(metrics.merge_clients(dict(enumerate(parts))))  # type: ignore[arg-type]
    shuffled = drawn.sample(parts, k=len(parts))
    again = metrics.finish(metrics.merge_clients(dict(enumerate(shuffled))))  # type: ignore[arg-type]
    assert found == again
    return found


@given(SEEDS, SIZES, st.integers(2, 4))
def test_classification(seed: int, count: int, classes: int) -> None:
    torch.manual_seed(seed)
    scores, target = torch.randn(count, classes), torch.randint(0, classes, (count,))
    found = of_parts(seed, scores, target, ["classification"])
    predicted = scores.argmax(1)
    assert found["accuracy"] == pytest.approx(oracle.accuracy_score(target, predicted))
    recalls = oracle.recall_score(
        target, predicted, labels=target.unique().tolist(), average="macro", zero_division=0
    )
    assert found["balanced_accuracy"] == pytest.approx(recalls)
    assert found["loss"] == 0


@given(SEEDS, SIZES, st.integers(1, 4), st.sampled_from([0.0, 0.5]))
def test_multilabel(seed: int, count: int, labels: int, threshold: float) -> None:
    torch.manual_seed(seed)
    scores, target = torch.randn(count, labels), torch.randint(0, 2, (count, labels))
    found = of_parts(seed, scores, target, [metrics.MultiLabel(threshold)])
    predicted = (scores > threshold).long()
    assert found["hamming"] == pytest.approx(float((predicted != target).float().mean()))
    above = 2 * (predicted * target).sum(0)
    below = predicted.sum(0) + target.sum(0)
    if int(below.sum()):
        flat = target.reshape(-1), predicted.reshape(-1)
        assert found["f1_micro"] == pytest.approx(oracle.f1_score(*flat, zero_division=0))
        shares = [float(a / b) for a, b in zip(above, below, strict=True) if b]
        assert found["f1_macro"] == pytest.approx(np.mean(shares))
    else:
        assert found.keys() == {"loss", "hamming"}


@given(SEEDS, st.integers(2, 12), st.sampled_from([0.0, 1e4]))
def test_regression(seed: int, count: int, center: float) -> None:
    torch.manual_seed(seed)
    target = torch.randn(count, dtype=torch.float64) + center
    scores = (target + torch.randn(count)).unsqueeze(1)
    found = of_parts(seed, scores, target, [Regression(center)])
    predicted = scores[:, 0]
    assert found["mae"] == pytest.approx(oracle.mean_absolute_error(target, predicted))
    assert found["rmse"] == pytest.approx(math.sqrt(oracle.mean_squared_error(target, predicted)))
    assert found["r2"] == pytest.approx(oracle.r2_score(target, predicted), rel=1e-6)


@given(SEEDS, st.integers(1, 6), st.integers(1, 4), st.booleans())
def test_segmentation(seed: int, count: int, classes: int, background: bool) -> None:
    torch.manual_seed(seed)
    size = (count, 3, 2)
    # One class: log-odds of it against the background.
    scores = torch.randn(count, classes, 3, 2)
    target = torch.randint(0, max(classes, 2), size)
    target[0, 0, 0] = -100
    found = of_parts(seed, scores, target, [Segmentation(background=background)])
    predicted = (scores[:, 0] > 0).long() if classes == 1 else scores.argmax(1)
    truth, guess = target[target != -100].numpy(), predicted[target != -100].numpy()
    assert found["pixel_accuracy"] == pytest.approx((truth == guess).mean())
    labels = [c for c in range(0 if background else 1, max(classes, 2)) if c in truth or c in guess]
    if labels:
        how = {"labels": labels, "average": "macro", "zero_division": 0}
        assert found["dice"] == pytest.approx(oracle.f1_score(truth, guess, **how))
        assert found["iou"] == pytest.approx(oracle.jaccard_score(truth, guess, **how))


@given(SEEDS, st.integers(1, 6), st.integers(0, 1))
def test_language(seed: int, count: int, shift: int) -> None:
    torch.manual_seed(seed)
    scores, target = torch.randn(count, 4, 7), torch.randint(0, 7, (count, 4))
    target[torch.rand(count, 4) < 0.3] = -100
    target[:, 1] = 3
    found = of_parts(seed, scores, target, [Language(shift=shift)])
    flat = scores[:, : 4 - shift].reshape(-1, 7)
    truth = target[:, shift:].reshape(-1)
    loss = functional.cross_entropy(flat, truth, ignore_index=-100)
    assert found["perplexity"] == pytest.approx(math.exp(float(loss)), rel=1e-4)
    used = truth != -100
    hits = (flat.argmax(1)[used] == truth[used]).float().mean()
    assert found["token_accuracy"] == pytest.approx(float(hits))


@given(SEEDS, SIZES, st.integers(1, 5))
def test_sums_of_a_task_in_each_form(seed: int, count: int, length: int) -> None:
    torch.manual_seed(seed)
    scores, target = torch.rand(count, length), torch.randint(0, 2, (count, length)).float()

    def own(output: Tensor, batch: Any) -> dict[str, Any]:
        x, y = batch
        return {
            "a": (x * y).sum(),
            "b": float(y.sum()),
            "va": (x * y).sum(0),
            "vb": y.sum(0).numpy(),
        }

    declared = [
        Ratio("share", "a", "b", "max"),
        Mean("each", "a", "min"),
        Root("rooted", "a"),
        Exp("powered", "a", "b", "min"),
        Macro("macro", "va", "vb"),
    ]
    found = of_parts(seed, scores, target, declared, own)
    a, b = float((scores * target).double().sum()), float(target.sum())
    assert found["each"] == pytest.approx(a / count, rel=1e-5)
    assert found["rooted"] == pytest.approx(math.sqrt(a / count), rel=1e-5)
    if not b:
        assert found.keys() == {"each", "rooted", "loss"}
        return
    assert found["share"] == pytest.approx(a / b, rel=1e-5)
    assert found["powered"] == pytest.approx(math.exp(a / b), rel=1e-5)
    va, vb = (scores * target).sum(0), target.sum(0)
    assert found["macro"] == pytest.approx(float((va[vb > 0] / vb[vb > 0]).mean()), rel=1e-5)
