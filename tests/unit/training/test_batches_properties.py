"""Batches of random nestings: the loss and the gradients are those of a loop written by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset, default_collate

from fl_queue.training import sgd
from fl_queue.training.batches import BatchHooks, fetch, leaves, to_device
from fl_queue.training.data_loading import LoaderSettings
from fl_queue.training.evaluation import EvaluationOptions


class Two(NamedTuple):
    """Parts of a sample by name."""

    first: Any
    second: Any


#: A leaf: numbers of a tensor's shape and its dtype.
LEAVES = st.tuples(
    st.lists(st.integers(1, 3), max_size=2),
    st.sampled_from([torch.float32, torch.float64, torch.int64, torch.float16]),
)
FORMS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: ("list", parts)),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: ("tuple", parts)),
        st.tuples(inner, inner).map(lambda parts: ("named", list(parts))),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: ("mapping", parts)),
    ),
    max_leaves=6,
)


def made(form: Any, draw: torch.Generator) -> Any:
    """A sample of a form, with random numbers."""
    kind, parts = form
    if isinstance(kind, list):
        return (torch.rand(kind, generator=draw) * 4).to(parts)
    found = [made(part, draw) for part in parts]
    if kind == "mapping":
        return {f"key{index}": part for index, part in enumerate(found)}
    return {"list": list, "tuple": tuple, "named": lambda both: Two(*both)}[kind](found)


class Drawn(Dataset[Any]):
    """Samples of a form, all different."""

    def __init__(self, form: Any, count: int) -> None:
        draw = torch.Generator().manual_seed(count)
        self.samples = [made(form, draw) for _ in range(count)]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        return self.samples[index]


class Weighing(nn.Module):
    """One weight for everything that a batch holds."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5))

    def forward(self, batch: Any) -> Tensor:
        parts = [one.reshape(len(one), -1).float().sum(1) for one in leaves(batch)]
        return self.weight * torch.stack(parts).sum(0)


def forward(model: nn.Module, batch: Any) -> Any:
    return {"scores": model(batch)}


def loss(output: Any, batch: Any) -> Tensor:
    """Mean square of the scores, less the size of the batch's first tensor."""
    first = next(leaves(batch)).float().mean()
    result: Tensor = (output["scores"] - first).square().mean()
    return result


def by_hand(dataset: Drawn, batch_size: int, accumulate: int) -> tuple[Tensor, float]:
    """The weight after an epoch in the data's order as drawn by the seed, and the epoch's mean loss."""
    model = Weighing()
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(3)).tolist()
    starts = range(0, len(dataset), batch_size)
    cuts = [order[start : start + batch_size] for start in starts]
    total = 0.0
    for step in range(0, len(cuts), accumulate):
        group = cuts[step : step + accumulate]
        model.zero_grad()
        for chosen in group:
            batch = default_collate([dataset[index] for index in chosen])
            found = loss(forward(model, batch), batch)
            (found * (len(chosen) / sum(map(len, group)))).backward()  # type: ignore[no-untyped-call]
            total += float(found) * len(chosen)
        with torch.no_grad():
            model.weight -= 0.01 * model.weight.grad  # type: ignore[operator]
    return model.weight.detach(), total / len(dataset)


@given(FORMS, st.integers(1, 9), st.integers(1, 4), st.integers(1, 3))
def test_any_nesting_trains_as_a_loop_written_by_hand(
    form: Any, count: int, batch_size: int, accumulate: int
) -> None:
    dataset, model = Drawn(form, count), Weighing()
    sums = sgd.local_sgd(
        model, dataset, loss, seed=3, epochs=1, batch_size=batch_size, learning_rate=0.01,
        accumulate=accumulate, forward=forward,
    )  # fmt: skip
    weight, mean = by_hand(dataset, batch_size, accumulate)
    assert torch.allclose(model.weight, weight, rtol=1e-5, atol=1e-6)
    assert sums["loss_sum"] / count == pytest.approx(mean, rel=1e-5)
    assert sums["num_examples"] == count


@given(FORMS, st.integers(1, 9), st.integers(1, 5))
def test_any_nesting_is_evaluated_by_the_samples_that_it_has(
    form: Any, count: int, batch_size: int
) -> None:
    dataset, model = Drawn(form, count), Weighing()
    options = EvaluationOptions(hooks=BatchHooks(forward=forward), batch_size=batch_size)
    sums = sgd.evaluate(model, dataset, loss, options=options)
    cuts = [range(count)[start : start + batch_size] for start in range(0, count, batch_size)]
    expected = 0.0
    for chosen in cuts:
        batch = default_collate([dataset[index] for index in chosen])
        expected += float(loss(forward(model, batch), batch)) * len(chosen)
    assert sums["num_examples"] == count
    assert sums["loss_sum"] == pytest.approx(expected, rel=1e-5)


def same(one: Any, other: Any) -> bool:
    """Whether two nested values have the same classes, shapes, dtypes and numbers."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one.dtype == other.dtype and torch.equal(one, other))


@given(FORMS, st.sampled_from(["cpu", "meta"]))
def test_what_is_moved_keeps_its_form(form: Any, device: str) -> None:
    value = made(form, torch.Generator().manual_seed(1))
    moved = to_device(value, device)
    assert all(one.device.type == device for one in leaves(moved))
    if device == "cpu":
        assert same(moved, value)
    chunk = torch.tensor([0, 1])
    dataset = Drawn(form, 2)
    (batch,) = fetch(dataset, [chunk], "cpu", LoaderSettings())
    assert same(batch, default_collate(dataset.samples))


@given(st.lists(st.lists(st.integers(1, 6), min_size=2, max_size=2), min_size=1, max_size=6))
def test_items_weigh_batches_and_losses(sizes: list[list[int]]) -> None:
    """Batches of sums over ragged items: with items the gradient is that of all items of a step together."""
    lengths = [one for pair in sizes for one in pair]
    data = [(torch.randn(length, 1), torch.randn(length, 1)) for length in lengths]

    def collate(samples: list[Any]) -> Any:
        return tuple(torch.cat(parts) for parts in zip(*samples, strict=True))

    def items(batch: Any) -> int:
        return len(batch[1])

    model: nn.Module = nn.Linear(1, 1)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    sums = sgd.local_sgd(
        model, data, functional.mse_loss, seed=1, epochs=1, batch_size=2, learning_rate=0.1,
        accumulate=len(data), collate=collate, items=items,
    )  # type: ignore[arg-type]  # fmt: skip
    whole: Callable[..., Any] = nn.Linear(1, 1)
    whole.load_state_dict(start)  # type: ignore[attr-defined]
    found = functional.mse_loss(whole(collate(data)[0]), collate(data)[1])
    found.backward()  # type: ignore[no-untyped-call]
    for name, parameter in whole.named_parameters():  # type: ignore[attr-defined]
        expected = parameter.detach() - 0.1 * parameter.grad
        assert torch.allclose(model.state_dict()[name], expected, atol=1e-5)
    assert sums["loss_items_sum"] == sum(lengths)
    assert sums["loss_sum"] / sum(lengths) == pytest.approx(float(found.detach()), rel=1e-4)
