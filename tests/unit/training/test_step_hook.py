"""Own loops under strategies: the terms reach torch's optimizers, and what they cannot reach is refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fl_queue.client.local_update import ClientStrategy, TrainingResult, initial_model, train_update
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import ConfigError
from fl_queue.strategies import get_strategy
from fl_queue.strategies.gradient_sum import accumulated
from fl_queue.tasks.base import ClientData, OnEpoch, Task
from fl_queue.tasks.context import ClientContext
from fl_queue.training.local_rule import LocalRule
from fl_queue.training.sgd import local_sgd
from fl_queue.training.step_hook import LocalTraining

ROWS, RATE, EPOCHS = 20, 0.05, 3
STEPS = EPOCHS * math.ceil(ROWS / 8)
Loop = Callable[[nn.Module, Any, ClientContext], None]


def rows() -> TensorDataset:
    drawn = torch.Generator().manual_seed(4)
    x = torch.randn(ROWS, 3, generator=drawn)
    return TensorDataset(x, x.sum(1, keepdim=True) + torch.randn(ROWS, 1, generator=drawn))


class Own(Task):
    """Least squares by a loop of its own, with nothing of fl-queue in it."""

    loop: Loop

    def build_model(self) -> nn.Module:
        return nn.Linear(3, 1)

    def client_data(self, context: ClientContext) -> ClientData:
        return ClientData(rows(), TensorDataset(torch.zeros(0, 3), torch.zeros(0, 1)))

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return nn.functional.mse_loss(output, target)

    def train(
        self, model: nn.Module, data: ClientData, context: ClientContext, on_epoch: OnEpoch
    ) -> Mapping[str, Any]:
        type(self).loop(model, data, context)
        return {"num_examples": ROWS}


Optimizers = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


def torch_loop(optimizers: Optimizers, model: nn.Module, data: Any, context: Any = None) -> None:
    """A plain loop."""
    optimizer = optimizers(model.parameters())
    for _ in range(EPOCHS):
        for x, y in DataLoader(data.train, 8):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()


def closure_loop(optimizers: Optimizers, model: nn.Module, data: Any, context: Any = None) -> None:
    """A loop that hands its optimizer a closure, as Lightning does."""
    optimizer = optimizers(model.parameters())

    def computed(x: Tensor, y: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        return loss

    for _ in range(EPOCHS):
        for x, y in DataLoader(data.train, 8):
            optimizer.step(partial(computed, x, y))


def scaled_loop(optimizers: Optimizers, model: nn.Module, data: Any, context: Any = None) -> None:
    """A loop with a loss scale; its first step overflows and is left out."""
    optimizer, scaler = optimizers(model.parameters()), torch.amp.GradScaler("cpu", 2.0**127)
    for _ in range(EPOCHS):
        for x, y in DataLoader(data.train, 8):
            optimizer.zero_grad()
            scaler.scale(nn.functional.mse_loss(model(x), y)).backward()
            scaler.step(optimizer)
            scaler.update()


def trained(
    loop: Loop, strategy: str = "fedavg", options: Any = None, kept: Any = None, server: Any = None
) -> TrainingResult:
    """An update by a loop. Args: ``kept``, ``server``: states of the strategy."""
    chosen = get_strategy(strategy, options or {})
    config = RunConfig.from_dict(
        {
            "run": {"task": "own:Own"},
            "train": {"learning_rate": RATE, "batch_size": 8, "epochs": EPOCHS},
            "aggregation": {"strategy": strategy, "weighting": chosen.WEIGHTINGS[0]},
            "strategy": options or {},
        }
    )
    task = type("Looping", (Own,), {"loop": staticmethod(loop)})(config)
    manifest, base = initial_model(task, 3)
    base = {name: array.copy() for name, array in base.items()}
    context = ClientContext.of(config, client="a", run="r", round_number=1)
    plan = ClientStrategy(chosen, server=server or {}, kept=kept or {})
    return train_update(task, manifest, base, context, plan=plan)


def update(found: TrainingResult) -> Tensor:
    return torch.tensor(np.concatenate([found.tensors[name].reshape(-1) for name in found.tensors]))


def objective_loop(
    optimizers: Optimizers, mu: float, offset: Tensor | float = 0.0, skip: int = 0
) -> Tensor:
    """Minimise loss + mu / 2 ||w - x||^2 + <offset, w - x> by autograd alone; the update, bias first."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    task = Own(RunConfig.from_dict({"run": {"task": "own:Own"}}))
    _, arrays = initial_model(task, 3)
    model.load_state_dict({name: torch.tensor(array.copy()) for name, array in arrays.items()})
    start = torch.cat([model.bias.detach().clone(), model.weight.detach().clone().reshape(-1)])
    optimizer, step = optimizers(model.parameters()), 0

    def whole() -> Tensor:
        return torch.cat([model.bias, model.weight.reshape(-1)]) - start

    for _ in range(EPOCHS):
        for x, y in DataLoader(rows(), 8):
            if (step := step + 1) <= skip:
                continue
            away = whole()
            loss = nn.functional.mse_loss(model(x), y)
            optimizer.zero_grad()
            (loss + mu / 2 * (away * away).sum() + (offset * away).sum()).backward()
            optimizer.step()
    return whole().detach()


ADAMW: Optimizers = partial(torch.optim.AdamW, lr=RATE, foreach=False)
SGD: Optimizers = partial(torch.optim.SGD, lr=RATE, momentum=0.9, nesterov=True, foreach=False)
G = {"g": {"bias": np.float32([0.3]), "weight": np.float32([[0.1, -0.2, 0.4]])}}


@pytest.mark.parametrize("optimizers", [ADAMW, SGD])
@pytest.mark.parametrize("loop", [torch_loop, closure_loop])
def test_fedprox_is_its_objective(loop: Any, optimizers: Optimizers) -> None:
    found = trained(partial(loop, optimizers), "fedprox", {"mu": 0.7})

    torch.testing.assert_close(update(found), objective_loop(optimizers, 0.7))
    assert not torch.allclose(update(found), objective_loop(optimizers, 0.0), atol=1e-3)


@pytest.mark.parametrize("loop", [torch_loop, closure_loop])
def test_feddyn_is_its_objective(loop: Any) -> None:
    found = trained(partial(loop, ADAMW), "feddyn", {"alpha": 0.5}, kept=G)
    wanted = objective_loop(ADAMW, 0.5, -torch.tensor([0.3, 0.1, -0.2, 0.4]))

    torch.testing.assert_close(update(found), wanted)
    keep = found.answer.keep
    assert keep is not None
    np.testing.assert_allclose(keep("g", "bias"), 0.3 - 0.5 * wanted[:1], rtol=1e-5)


def test_dittos_personal_model_is_its_objective_and_its_update_that_of_fedavg() -> None:
    found = trained(partial(torch_loop, ADAMW), "ditto", {"lambda": 0.9})
    personal = torch.tensor(np.concatenate([found.own["bias"], found.own["weight"].reshape(-1)]))
    start = torch.tensor(
        np.concatenate([found.tensors.local(name).reshape(-1) for name in ("bias", "weight")])
    ) - update(found)

    torch.testing.assert_close(personal - start, objective_loop(ADAMW, 0.9))
    assert torch.equal(update(found), update(trained(partial(torch_loop, ADAMW))))


def test_a_step_that_a_loss_scale_leaves_out_has_no_terms_and_is_not_counted() -> None:
    found = trained(partial(scaled_loop, SGD), "fednova", {"mu": 0.7})
    skipped = STEPS - int(found.answer.scalars["tau"])

    assert 0 < skipped < STEPS
    torch.testing.assert_close(update(found), objective_loop(SGD, 0.7, skip=skipped))


def test_scaffold_and_fednova_count_the_steps_of_a_loop_with_a_schedule() -> None:
    def halving(model: nn.Module, data: Any, context: Any) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.5)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        for x, y in DataLoader(data.train, 8):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()
            scheduler.step()

    # v = 1, 1.5, 1.75 at 1, 1/2, 1/4 of the rate.
    distance = 1 + 1.5 / 2 + 1.75 / 4
    nova = trained(halving, "fednova")
    assert nova.answer.scalars["tau"] == pytest.approx(distance, abs=1e-12)

    found = trained(halving, "scaffold", server={"c": G["g"]})
    assert found.answer.extra is not None
    wanted = -found.tensors["bias"] / (RATE * distance) - 0.3
    np.testing.assert_allclose(found.answer.extra("dc", "bias"), wanted, rtol=1e-5)


def test_a_search_along_a_line_sees_the_objective() -> None:
    def searching(model: nn.Module, data: Any, context: Any) -> None:
        x, y = data.train.tensors
        optimizer = torch.optim.LBFGS(
            model.parameters(), max_iter=50, line_search_fn="strong_wolfe", tolerance_grad=1e-9
        )

        def computed() -> Tensor:
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x), y)
            loss.backward()
            return loss

        optimizer.step(computed)

    found = update(trained(searching, "feddyn", {"alpha": 2.0}, kept=G))
    task = Own(RunConfig.from_dict({"run": {"task": "own:Own"}}))
    start = torch.tensor(
        np.concatenate([a.reshape(-1) for a in initial_model(task, 3)[1].values()])
    )
    x, y = rows().tensors
    x = torch.cat([torch.ones(ROWS, 1), x], dim=1)
    # The optimum of the quadratic in closed form.
    square, right = 2 / ROWS * x.T @ x, 2 / ROWS * x.T @ (y[:, 0] - x @ start)
    wanted = torch.linalg.solve(
        square + 2.0 * torch.eye(4), right + torch.tensor([0.3, 0.1, -0.2, 0.4])
    )
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


class Foreign:
    """A descent that is no optimizer of torch."""

    def __init__(self, calls: bool, counts: bool = True, rate: float = RATE) -> None:
        self.calls, self.counts, self.rate = calls, counts, rate

    def __call__(self, model: nn.Module, data: Any, context: ClientContext) -> None:
        assert context.training is not None
        for _ in range(EPOCHS):
            for x, y in DataLoader(data.train, 8):
                model.zero_grad()
                nn.functional.mse_loss(model(x), y).backward()
                if self.calls:
                    context.training.add_terms()
                with torch.no_grad():
                    for one in model.parameters():
                        assert one.grad is not None
                        one -= RATE * one.grad
                if self.counts:
                    context.training.count_step(self.rate)


def test_an_optimizer_that_is_not_torchs_adds_terms_by_hand() -> None:
    plain: Optimizers = partial(torch.optim.SGD, lr=RATE)
    found = trained(Foreign(calls=True), "fedprox", {"mu": 0.7})

    torch.testing.assert_close(update(found), objective_loop(plain, 0.7))
    counted = trained(Foreign(calls=True), "fednova")
    assert counted.answer.scalars["tau"] == accumulated(STEPS)


class Wrapping(torch.optim.SGD):
    """An optimizer whose step is another one's."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        parameters = list(parameters)
        super().__init__(parameters, lr=RATE)
        self.inner = torch.optim.SGD(parameters, lr=RATE)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.inner.step()


class WithoutHooks(Wrapping):
    """The same, by a step of which torch knows nothing."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__(parameters)
        self.step = lambda closure=None: self.inner.step()  # type: ignore[method-assign]


@pytest.mark.parametrize("kind", [torch.optim.SGD, Wrapping, WithoutHooks])
@pytest.mark.parametrize("mu", [0.0, 0.7])
def test_an_own_optimizer_that_wraps_another_has_the_terms_once(kind: Any, mu: float) -> None:
    """Args: ``kind``: the first is the one that the others wrap."""

    def own(parameters: Any, lr: float) -> torch.optim.Optimizer:
        found: torch.optim.Optimizer = (
            kind(parameters) if kind is not torch.optim.SGD else kind(parameters, lr=lr)
        )
        return found

    model = nn.Linear(3, 1)
    with torch.no_grad():
        model.weight.fill_(0.5)
        model.bias.fill_(0.5)
    start = {one: torch.zeros_like(one) for one in model.parameters()} if mu else {}
    rule = LocalRule(mu, start)
    with LocalTraining(model, rule).watching():
        local_sgd(
            model, rows(), nn.functional.mse_loss, seed=1, epochs=EPOCHS, batch_size=8, learning_rate=RATE,
            optimizer="mine:own", own_optimizer=own, rule=rule,
        )  # fmt: skip
    plain = nn.Linear(3, 1)
    with torch.no_grad():
        plain.weight.fill_(0.5)
        plain.bias.fill_(0.5)
    local_sgd(
        plain, rows(), nn.functional.mse_loss, seed=1, epochs=EPOCHS, batch_size=8, learning_rate=RATE,
        weight_decay=mu,
    )  # fmt: skip

    torch.testing.assert_close(model.weight, plain.weight)
    assert rule.steps == STEPS


def two_optimizers(model: nn.Module, data: Any, context: Any) -> None:
    for one in model.parameters():
        torch_loop(lambda _, one=one: torch.optim.SGD([one], lr=RATE), model, data)


def unseen_bias(model: Any, data: Any, context: Any) -> None:
    torch_loop(lambda _: torch.optim.SGD([model.weight], lr=RATE), model, data)
    with torch.no_grad():
        model.bias += 1.0


def two_rates(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    first, *rest = parameters
    return torch.optim.SGD([{"params": [first], "lr": 1.0}, {"params": rest}], lr=RATE)


def fused(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=RATE, fused=True)


@pytest.mark.parametrize(
    ("strategy", "loop", "text"),
    [
        ("scaffold", partial(torch_loop, ADAMW), r"means of SGD's gradients.*steps with AdamW"),
        ("fednova", partial(torch_loop, ADAMW), "how often SGD's gradients count"),
        ("scaffold", two_optimizers, "by one optimizer, and this loop has several"),
        ("fednova", partial(torch_loop, two_rates), "differ in lr"),
        (
            "scaffold",
            partial(torch_loop, partial(torch.optim.SGD, lr=RATE, momentum=0.5, dampening=0.1)),
            "without dampening",
        ),
        ("fedprox", partial(scaled_loop, fused), "make it with fused=False"),
        ("fedprox", partial(torch_loop, Wrapping), "SGD steps within a step of Wrapping"),
        ("fedprox", unseen_bias, "bias changed in none that was seen"),
        ("fedprox", Foreign(calls=False), "changed in none that was seen"),
        ("fedprox", Foreign(calls=True, counts=False), "none of this task's was seen"),
        ("scaffold", Foreign(calls=True, rate=0.0), "give count_step the learning rate"),
    ],
)
def test_what_the_terms_cannot_reach_is_refused_by_name(
    strategy: str, loop: Loop, text: str
) -> None:
    with pytest.raises(ConfigError, match=text) as caught:
        trained(loop, strategy)
    assert (caught.value.field, bool(caught.value.public)) == ("aggregation.strategy", True)


def test_sparse_gradients_and_sharded_parameters_are_refused() -> None:
    model = nn.Embedding(4, 2, sparse=True)
    rule = LocalRule(0.1, {model.weight: model.weight.detach().clone()})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with LocalTraining(model, rule).watching():
        model(torch.tensor([1])).sum().backward()
        with pytest.raises(ConfigError, match="sparse=False"):
            optimizer.step()

    class FlatParameter(nn.Parameter):
        """As FSDP names it."""

    model = nn.Linear(2, 2, bias=False)
    model.weight = FlatParameter(torch.zeros(2, 2))
    with LocalTraining(model, LocalRule(0.1, {model.weight: torch.zeros(2, 2)})).watching():
        model(torch.ones(1, 2)).sum().backward()
        with pytest.raises(ConfigError, match="FSDP"):
            torch.optim.SGD(model.parameters(), lr=0.1).step()


def test_without_terms_a_loop_keeps_its_bits_and_other_models_are_passed_over() -> None:
    plain, watched, other = nn.Linear(3, 1), nn.Linear(3, 1), nn.Linear(3, 1)
    watched.load_state_dict(plain.state_dict())
    data = ClientData(rows(), rows())
    torch_loop(ADAMW, plain, data)
    rule = LocalRule()
    with LocalTraining(watched, rule).watching():
        torch_loop(ADAMW, watched, data)
        torch_loop(ADAMW, other, data)
    torch_loop(ADAMW, watched, ClientData(TensorDataset(*rows()[:0]), rows()))

    assert torch.equal(plain.weight, watched.weight)
    assert rule.steps == STEPS


@pytest.mark.parametrize("proximal", [0.0, 0.3])
def test_terms_are_the_same_by_lists_of_tensors(proximal: float) -> None:
    """As on an accelerator; one parameter has an anchor, one an offset, one both and one no gradient."""
    found = []
    for by_lists in (False, True):
        drawn = torch.Generator().manual_seed(3)
        tensors = [torch.randn(4, 3, generator=drawn) for _ in range(16)]
        parameters = [nn.Parameter(one) for one in tensors[:4]]
        for one, gradient in zip(parameters[:3], tensors[4:7], strict=True):
            one.grad = gradient
        anchors = {parameters[index]: tensors[8 + index] for index in (0, 2, 3)} if proximal else {}
        offsets = {parameters[index]: tensors[12 + index] for index in (1, 2, 3)}
        rule = LocalRule(proximal, anchors, offsets)
        with torch.no_grad():
            (rule._add_to_lists if by_lists else rule.add_terms)(parameters[:3])
        found.append([one.grad for one in parameters[:3]])

    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
