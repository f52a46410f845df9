"""``local_sgd`` takes its options as an object, one by one, or both."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from fl_queue.tasks import SgdOptions, local_sgd

OPTIONS = SgdOptions(seed=3, epochs=2, batch_size=4, learning_rate=0.1, momentum=0.9)


def trained(options: SgdOptions | None = None, **settings: object) -> tuple[list[float], float]:
    torch.manual_seed(1)
    model = nn.Linear(3, 1)
    data = TensorDataset(torch.randn(10, 3), torch.randn(10, 1))
    sums = local_sgd(model, data, nn.functional.mse_loss, options, **settings)
    return [*model.weight.flatten().tolist(), model.bias.item()], sums["loss_sum"]


def test_options_one_by_one_train_as_an_object_does() -> None:
    one_by_one = trained(seed=3, epochs=2, batch_size=4, learning_rate=0.1, momentum=0.9)

    assert one_by_one == trained(OPTIONS)
    assert trained(OPTIONS, momentum=0.0) != one_by_one


@pytest.mark.parametrize("settings", [{"epochs": 1}, {"sed": 1}])
def test_an_option_that_is_missing_or_unknown_is_named(settings: dict[str, object]) -> None:
    with pytest.raises(TypeError, match=r"seed|sed"):
        trained(**settings)
