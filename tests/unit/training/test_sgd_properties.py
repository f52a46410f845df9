"""Evaluation of any outputs and targets: it has its loss, what it counts is right, nothing is raised."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from fl_queue import metrics
from fl_queue.protocol import message
from fl_queue.protocol.header import Header
from fl_queue.training import sgd

DTYPES = (torch.float32, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool)
SHAPES = ((), (1,), (2,), (3,), (4, 4))


@st.composite
def tasks(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    count = draw(st.integers(1, 40))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    output = torch.randn(count, *draw(st.sampled_from(SHAPES)), generator=generator)
    if draw(st.booleans()):
        output[0] = draw(st.sampled_from([torch.nan, torch.inf, -torch.inf, 1e30]))
    low, high = draw(st.sampled_from([(0, 1), (0, 2), (0, 3), (0, 80), (-100, 3)]))
    target = torch.randint(low, high + 1, (count, *draw(st.sampled_from(SHAPES))))
    return output, target.to(draw(st.sampled_from(DTYPES)))


@given(tasks(), st.sampled_from([0.0, 0.7, float("nan"), float("inf")]))
@settings(max_examples=120, deadline=None)
def test_an_evaluation_takes_every_output_and_target(task: Any, value: float) -> None:
    output, target = task
    data = TensorDataset(output, target)
    sums = sgd.evaluate(nn.Identity(), data, lambda found, truth: torch.tensor(value))
    metrics.check(sums)
    assert sums["num_examples"] <= len(target)
    assert ("loss_sum" in sums) == bool(np.isfinite(value) and sums["num_examples"])
    finished = metrics.finish(sums)
    assert all(0 <= finished[name] <= 1 for name in ("accuracy", "f1", "auc") if name in finished)
    header = Header(kind="evaluation", run="r-1", round=1, client="a", metrics=sums)
    assert message.unpack(message.pack(header, None), max_body_bytes=0)[0].metrics == sums


def _by_hand(odds: Tensor, truth: Tensor) -> tuple[float, float]:
    """Accuracy, and the share of pairs in the right order."""
    positives, negatives = odds[truth == 1], odds[truth == 0]
    ahead = positives[:, None] - negatives
    right = ((odds > 0) == (truth == 1)).double().mean()
    return float(right), float(((ahead > 0) + 0.5 * (ahead == 0)).mean())


LOSSES = {
    "log-odds": functional.binary_cross_entropy_with_logits,
    "weighted": nn.BCEWithLogitsLoss(pos_weight=torch.tensor(9.0)),
    "probability": functional.binary_cross_entropy,
}


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("target_shape", [(300,), (300, 1)])
@pytest.mark.parametrize("output_shape", [(300,), (300, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.uint8])
def test_a_binary_model_has_binary_metrics(
    kind: str, target_shape: Any, output_shape: Any, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(1)
    truth = (torch.rand(300, generator=generator) < 0.2).long()
    odds = 1.5 * torch.randn(300, generator=generator) + 2 * truth - 1.5
    given_out = odds.sigmoid() if kind == "probability" else odds
    data = TensorDataset(given_out.reshape(output_shape), truth.to(dtype).reshape(target_shape))
    sums = sgd.evaluate(
        nn.Identity(),
        data,
        lambda found, target: LOSSES[kind](found.reshape(-1), target.reshape(-1).float()),
    )
    accuracy, auc = _by_hand(odds, truth)
    finished = metrics.finish(sums)
    assert finished["accuracy"] == pytest.approx(accuracy)
    assert finished["auc"] == pytest.approx(auc, abs=2e-3)
    assert "f1" in finished


@pytest.mark.parametrize("loss", [functional.mse_loss, functional.l1_loss])
def test_a_regression_of_zeros_and_ones_is_no_classification(loss: Any) -> None:
    data = TensorDataset(torch.rand(300, 1), torch.randint(0, 2, (300, 1)).float())
    assert metrics.finish(sgd.evaluate(nn.Identity(), data, loss)).keys() == {"loss"}


def test_what_is_passed_over_counts_in_no_metric() -> None:
    output = torch.eye(3).repeat(200, 1)
    target = torch.arange(3).repeat(200)
    target[300:] = -100  # Whole batches of them: their mean loss is NaN.
    finished = metrics.finish(
        sgd.evaluate(nn.Identity(), TensorDataset(output, target), functional.cross_entropy)
    )
    assert finished["accuracy"] == 1.0
    assert finished["loss"] == pytest.approx(float(functional.cross_entropy(output, target)))


def test_a_model_that_returns_more_than_a_tensor_has_its_loss() -> None:
    class Two(nn.Module):
        def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
            return inputs, inputs

    data = TensorDataset(torch.eye(3), torch.arange(3))
    sums = sgd.evaluate(Two(), data, lambda found, truth: functional.cross_entropy(found[0], truth))
    assert sums.keys() == {"num_examples", "loss_sum"}


def test_what_is_not_computed_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    from fl_queue.training import classification

    classification._note.cache_clear()
    data = TensorDataset(torch.randn(600, 3), torch.full((600,), 7))
    loss = lambda output, target: output.sum() * torch.nan  # noqa: E731
    assert sgd.evaluate(nn.Identity(), data, loss) == {"num_examples": 600}
    assert [record.message for record in caplog.records] == [
        "accuracy, f1 and auc are not computed: the targets are not classes from 0 to the number of the model's outputs",
        "the loss is not computed: the loss of some samples is not finite",
    ]
