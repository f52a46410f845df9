"""Each optimizer of ``[train]`` against a loop written with torch alone, bit by bit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from fl_queue.errors import ConfigError
from fl_queue.training import sgd
from fl_queue.training.optimizers import implementation

EPOCHS, BATCH, ROWS = 3, 4, 18
STEPS = EPOCHS * math.ceil(ROWS / BATCH)
Optimizers = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


def built() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3))


def data() -> TensorDataset:
    drawn = torch.Generator().manual_seed(2)
    return TensorDataset(
        torch.randn(ROWS, 6, generator=drawn), torch.randint(0, 3, (ROWS,), generator=drawn)
    )


def ours(**settings: Any) -> list[Tensor]:
    model = built()
    shared = {"seed": 7, "epochs": EPOCHS, "batch_size": BATCH, "learning_rate": 0.01}
    sgd.local_sgd(model, data(), nn.functional.cross_entropy, **{**shared, **settings})
    return list(model.parameters())


def plain(
    optimizers: Optimizers, factor: Callable[[int], float] = lambda step: 1.0, clip: float = 0.0
) -> list[Tensor]:
    """The same training as anyone writes it."""
    model, (x, y) = built(), data().tensors
    optimizer = optimizers(model.parameters())
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    order = torch.Generator().manual_seed(7)
    for _ in range(EPOCHS):
        for rows in torch.randperm(ROWS, generator=order).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            scheduler.step()
    return list(model.parameters())


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


CPU = {"foreach": False, "fused": False}
CASES: list[tuple[str, dict[str, Any], Optimizers]] = [
    ("adam", {}, lambda p: torch.optim.Adam(p, 0.01, **CPU)),
    (
        "adam",
        {"weight_decay": 0.1, "optimizer_options": {"amsgrad": True}},
        lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.1, amsgrad=True, **CPU),
    ),
    ("adamw", {}, lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0, **CPU)),
    (
        "adamw",
        {"weight_decay": 0.3, "optimizer_options": {"betas": [0.8, 0.95], "eps": 1e-6}},
        lambda p: torch.optim.AdamW(p, 0.01, (0.8, 0.95), 1e-6, weight_decay=0.3, **CPU),
    ),
    (
        "adagrad",
        {"optimizer_options": {"lr_decay": 0.1, "initial_accumulator_value": 0.2}},
        lambda p: torch.optim.Adagrad(p, 0.01, lr_decay=0.1, initial_accumulator_value=0.2, **CPU),
    ),
    (
        "rmsprop",
        {"momentum": 0.9, "optimizer_options": {"centered": True, "alpha": 0.9}},
        lambda p: torch.optim.RMSprop(
            p, 0.01, alpha=0.9, momentum=0.9, centered=True, foreach=False
        ),
    ),
    (
        "sgd",
        {"momentum": 0.9, "weight_decay": 0.01, "optimizer_options": {"nesterov": True}},
        lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, weight_decay=0.01, nesterov=True, **CPU),
    ),
    ("sgd", {"momentum": 0.5}, lambda p: torch.optim.SGD(p, 0.01, momentum=0.5, **CPU)),
]


@pytest.mark.parametrize(("name", "settings", "torchs"), CASES)
def test_an_optimizer_is_torchs_own(
    name: str, settings: dict[str, Any], torchs: Optimizers
) -> None:
    assert equal(ours(optimizer=name, **settings), plain(torchs))


def cosine(step: int) -> float:
    """Three steps up, then half a cosine."""
    rising = round(0.2 * STEPS)
    if step < rising:
        return (step + 1) / rising
    return (1 - math.cos(math.pi * max(0.0, (STEPS - step) / (STEPS - rising)))) / 2


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_schedule_and_clipping_are_those_of_a_loop_with_torchs_scheduler(name: str) -> None:
    kinds: Mapping[str, Optimizers] = {
        "sgd": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, **CPU),
        "adamw": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0, **CPU),
    }
    momentum = 0.9 if name == "sgd" else 0.0
    found = ours(optimizer=name, momentum=momentum, schedule="cosine", warmup=0.2, clip_norm=0.5)

    assert equal(found, plain(kinds[name], cosine, 0.5))


def signs(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Lion as its paper has it, in other words than the product's."""

    class Plain(torch.optim.Optimizer):
        def step(self, closure: None = None) -> None:  # type: ignore[override]
            for one in self.param_groups[0]["params"]:
                held = self.state[one].setdefault("m", torch.zeros_like(one))
                direction = (0.9 * held + (1 - 0.9) * one.grad).sign()
                one.data = one.data - 0.01 * (direction + 0.5 * one.data)
                self.state[one]["m"] = 0.99 * held + (1 - 0.99) * one.grad

    return Plain(parameters, {"lr": 0.01})


def test_lion_is_its_algorithm() -> None:
    found = ours(optimizer="lion", weight_decay=0.5)

    for one, other in zip(found, plain(signs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_an_own_optimizer_gets_the_rate_and_its_options() -> None:
    given: list[tuple[float, dict[str, Any]]] = []

    def own(parameters: Any, lr: float, **options: Any) -> torch.optim.Optimizer:
        given.append((lr, options))
        return torch.optim.NAdam(parameters, lr, betas=(0.8, 0.9), foreach=False)

    found = ours(
        optimizer="mine:own", own_optimizer=own, optimizer_options={"a": 1}, weight_decay=0.1
    )

    assert given == [(0.01, {"a": 1, "weight_decay": 0.1})]
    assert equal(
        found, plain(lambda p: torch.optim.NAdam(p, 0.01, betas=(0.8, 0.9), foreach=False))
    )


@pytest.mark.parametrize(
    ("own", "field", "text"),
    [
        (lambda parameters, lr: None, "train.optimizer", "returned a NoneType, not a torch.optim"),
        (lambda parameters, lr, a: None, "train.optimizer_options", "does not take them"),
    ],
)
def test_an_own_optimizer_that_is_none_is_named(
    own: Callable[..., Any], field: str, text: str
) -> None:
    with pytest.raises(ConfigError, match=text) as caught:
        ours(optimizer="mine:own", own_optimizer=own)
    assert caught.value.field == field


@pytest.mark.parametrize("name", ["sgd", "adamw", "lion"])
def test_groups_have_their_own_rate_and_decay(name: str) -> None:
    def groups(model: nn.Module) -> list[dict[str, Any]]:
        first, *rest = model.parameters()
        return [{"params": rest}, {"params": [first], "lr_factor": 0.0, "weight_decay": 0.0}]

    found = ours(optimizer=name, weight_decay=0.1, param_groups=groups)

    assert torch.equal(found[0], next(built().parameters()))
    assert not torch.equal(found[1], list(built().parameters())[1])


def test_the_mean_of_the_weights_is_their_running_mean() -> None:
    model, seen = built(), []
    mean = [one.detach().clone() for one in model.parameters()]

    class Watched(torch.optim.SGD):
        def step(self, closure: None = None) -> None:  # type: ignore[override]
            super().step()
            now = [one.detach().clone() for one in self.param_groups[0]["params"]]
            seen.append([0.9 * a + (1 - 0.9) * b for a, b in zip(seen[-1], now, strict=True)])

    seen.append(mean)
    plain(lambda p: Watched(p, 0.01, **CPU))

    for one, other in zip(ours(ema=0.9), seen[-1], strict=True):
        torch.testing.assert_close(one, other)
    assert not equal(ours(ema=0.9), ours())


def test_a_receipt_names_the_loop() -> None:
    assert implementation("adamw", "cpu") == "adamw (single tensors)"
    assert implementation("adamw", "cuda:1") == "adamw (foreach)"
    assert implementation("mine:own", "cuda") == "mine:own"
