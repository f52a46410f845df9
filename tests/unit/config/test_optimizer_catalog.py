"""The catalog of optimizers agrees with torch: options, and what is kept of each parameter."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

from fl_queue.config.optimizer_catalog import OPTIMIZERS, options_of, state_of
from fl_queue.training.optimizers import Recipe, TorchUpdater


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name not in ("sgd", "lion")])
def test_defaults_are_torchs(name: str) -> None:
    kind = next(
        one for one in vars(torch.optim).values() if getattr(one, "__name__", "").lower() == name
    )
    defaults = inspect.signature(kind).parameters

    assert {key: defaults[key].default for key in OPTIMIZERS[name].options} == options_of(name, {})


@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"centered": True}])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_kept_of_a_parameter_is_what_torch_keeps(
    name: str, momentum: float, options: dict[str, bool]
) -> None:
    entry = OPTIMIZERS[name]
    if not set(options) <= set(entry.options) or (momentum and not entry.takes_momentum):
        return
    model = nn.Linear(2, 2)
    # On a CPU, as SGD of torch keeps what its loop here does.
    recipe = Recipe(name=name, learning_rate=0.1, momentum=momentum, options=options)
    updater = TorchUpdater(recipe.optimizer([{"params": list(model.parameters())}]))
    model(torch.ones(1, 2)).sum().backward()
    updater.step()

    kept = {
        key for key, value in updater.state().get(model.weight, {}).items() if value is not None
    }
    counter = {"step"} if entry.counts else set()
    assert kept == {*state_of(name, momentum, options_of(name, options)), *counter}
