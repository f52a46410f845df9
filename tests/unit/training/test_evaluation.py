"""How many samples an evaluation takes at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from fl_queue.analyses import report_sums
from fl_queue.analyses.base import Limits
from fl_queue.metrics import reports
from fl_queue.training import evaluation
from fl_queue.training.evaluation import EvaluationOptions, evaluate


class Large(nn.Module):
    """Outputs of so many numbers a sample."""

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.numbers, self.sizes = numbers, []  # type: ignore[var-annotated]

    def forward(self, x: Tensor) -> Any:
        self.sizes.append(len(x))
        return {"logits": x.expand(len(x), self.numbers), "more": [x]}


def mean(output: Any, target: Any) -> Tensor:
    found: Tensor = output["logits"].mean()
    return found


@pytest.mark.parametrize(
    ("numbers", "trained", "fixed", "most"),
    [
        (8, 64, 0, 256),
        (1000, 64, 0, 256),
        (5000, 64, 0, 128),
        (10_000, 64, 0, 64),
        (10**6, 64, 0, 64),
        (10**6, 10, 0, 10),
        (10**6, 10, 70, 70),
        (8, 10, 0, 40),
        (8, 300, 0, 256),
        (8, 64, 1, 1),
    ],
)
def test_a_batch_is_halved_until_its_outputs_are_small_enough(
    monkeypatch: pytest.MonkeyPatch, numbers: int, trained: int, fixed: int, most: int
) -> None:
    monkeypatch.setattr(evaluation, "LARGEST_OUTPUT", 3_000_000)
    model = Large(numbers)
    data = TensorDataset(torch.zeros(600, 1), torch.zeros(600))
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index,union-attr]
    options = EvaluationOptions(batch_size=fixed)
    found = evaluate(model, data, mean, batch_size=trained, options=options)
    assert found == {"num_examples": 600, "loss_sum": 0.0}
    assert max(model.sizes) == most
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()  # type: ignore[index,union-attr]


@pytest.mark.parametrize("size", [1, 7, 256])
def test_the_report_of_scored_rows_is_that_of_all_batches(size: int) -> None:
    """``scored_rows`` takes classes and numbers as they come, and a limited site shows no small count."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 1, generator=generator)
    kinds = {
        reports.BINARY: (nn.Identity(), (x[:, 0] > 0.3).long()),
        reports.CLASSES: (Wide(3), torch.arange(40) % 3),
        reports.REGRESSION: (nn.Identity(), x[:, 0] * 2),
    }
    made = {
        reports.BINARY: report_sums.of_binary,
        reports.CLASSES: report_sums.of_classes,
        reports.REGRESSION: report_sums.of_numbers,
    }
    for key, (model, target) in kinds.items():
        loss = nn.MSELoss() if key == reports.REGRESSION else nn.CrossEntropyLoss()
        if key == reports.BINARY:
            loss = nn.BCEWithLogitsLoss()
        options = EvaluationOptions(batch_size=size, shown=Limits(min_cell=5))

        def mean_of(output: Any, truth: Any, loss: Any = loss) -> Tensor:
            is_wide = output.shape[1] > 1
            found: Tensor = loss(output, truth) if is_wide else loss(output[:, 0], truth.float())
            return found

        found = evaluate(model, TensorDataset(x, target), mean_of, options=options)
        scores = model(x).double().numpy()
        scores = scores if key == reports.CLASSES else scores[:, 0]
        truth = target.double().numpy() if key == reports.REGRESSION else target.numpy()
        assert found[key] == made[key](scores, truth, Limits(min_cell=5))  # type: ignore[operator]
        assert key not in evaluate(model, TensorDataset(x, target), mean_of)


class Wide(nn.Module):
    """Scores of so many classes."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.arange(1, self.classes + 1)
