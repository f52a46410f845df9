"""Marks see what a task, or a data set, carries from one job to the next; and looking changes and calls nothing."""

from __future__ import annotations

import copy
import functools
import itertools
import random
import sys
import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from fl_queue.client.value_marks import of_data, of_value
from fl_queue.tasks import ClientData

OWN = frozenset({__name__})


class Slotted:
    __slots__ = ("n",)

    def __init__(self) -> None:
        self.n = 0


class Own(Dataset[Any]):
    """A data set with state of each kind."""

    unmarked = ("opened",)

    def __init__(self) -> None:
        self.x = np.zeros((100, 3))
        self.t = torch.zeros(100, 3)
        self.epoch = 0
        self.order = list(range(5000))
        self.rows = np.zeros((300, 300))[::2, ::3]
        self.opened: Any = None
        self.reads = 0

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("a mark reads no sample")

    @property
    def asked(self) -> int:
        raise AssertionError("a mark asks no property")

    @functools.cached_property
    def names(self) -> list[str]:
        return ["a"]


class Held:
    """What a task may hold."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(1)
        self.old = np.random.RandomState(1)
        self.random = random.Random(1)
        self.torch = torch.Generator().manual_seed(1)
        self.order = list(range(100))
        self.d: dict[str, Any] = {"n": 0, "deep": {"n": [0]}}
        self.counts: Counter[str] = Counter()
        self.window = deque([1.0, 2.0], maxlen=2)
        self.seen = {1, 2}
        self.module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        self.half = torch.zeros(4, dtype=torch.bfloat16)
        self.inner = SimpleNamespace(n=0, inner=SimpleNamespace(n=0))
        self.slotted = Slotted()
        self.bytes = bytearray(4)
        self.draw = self.rng.random
        self.objects = np.array([[0], None], dtype=object)
        self.me = self
        self.function = counter()


def counter() -> Callable[[], int]:
    count = 0

    def counted() -> int:
        nonlocal count
        count += 1
        return count

    return counted


def setting(path: str, value: Any) -> Callable[[Any], None]:
    *inside, name = path.split(".")
    return lambda held: setattr(functools.reduce(getattr, inside, held), name, value)


OF_TASKS: dict[str, Callable[[Any], Any]] = {
    "numpy's generator": lambda held: held.rng.random(),
    "its bound method": lambda held: held.draw(),
    "numpy's old generator": lambda held: held.old.rand(),
    "random.Random": lambda held: held.random.random(),
    "torch's generator": lambda held: torch.rand(1, generator=held.torch),
    "an order": lambda held: random.shuffle(held.order),
    "an entry": lambda held: held.d.update(n=1),
    "an entry further down": lambda held: held.d["deep"]["n"].__setitem__(0, 1),
    "counts": lambda held: held.counts.update("a"),
    "a window": lambda held: held.window.append(3.0),
    "a set of the same length": lambda held: (held.seen.remove(1), held.seen.add(3)),
    "weights": lambda held: nn.init.ones_(held.module[0].weight),
    "weights through data": lambda held: held.module[0].weight.data.add_(1),
    "buffers": lambda held: held.module(torch.ones(3, 2)),
    "a new weight": lambda held: setattr(held.module[0], "bias", None),
    "a module's mode": lambda held: held.module.eval(),
    "half precision": lambda held: held.half.data.add_(1),
    "an object": setting("inner.n", 1),
    "an object further down": setting("inner.inner.n", 1),
    "slots": setting("slotted.n", 1),
    "bytes": lambda held: held.bytes.__setitem__(0, 1),
    "objects in an array": lambda held: held.objects[0].append(1),
    "a closure": lambda held: held.function(),
    "its class": lambda held: setattr(Held, "n", getattr(Held, "n", 0) + 1),
}


def marks_of(held: Held) -> Any:
    return of_value(Held, OWN), [of_value(value, OWN) for value in vars(held).values()]


@pytest.mark.parametrize("what", OF_TASKS)
def test_a_change_of_what_a_task_holds_is_seen(what: str) -> None:
    held = Held()
    before = marks_of(held)
    assert marks_of(held) == before
    OF_TASKS[what](held)
    assert marks_of(held) != before


OF_DATA: dict[str, Callable[[Any], Any]] = {
    "numpy": lambda data: data.x.__iadd__(1),
    "tensor": lambda data: data.t.__iadd__(1),
    "tensor through numpy": lambda data: data.t.numpy().__iadd__(1),
    "number": setting("epoch", 1),
    "order of many": lambda data: random.shuffle(data.order),
    "part of an array": lambda data: data.rows.__iadd__(1),
}
WRAPPED: dict[str, Callable[[Any], Any]] = {
    "alone": lambda data: data,
    "in a list": lambda data: [data, 1],
    "in a Subset": lambda data: Subset(data, [1, 2]),
    "in client data": lambda data: ClientData(Subset(Subset(data, [1, 2]), [1]), Subset(data, [])),
    "joined": lambda data: ConcatDataset([data, TensorDataset(torch.zeros(3))]),
}


@pytest.mark.parametrize("wrapped", WRAPPED)
@pytest.mark.parametrize("what", OF_DATA)
def test_a_change_of_data_is_seen(what: str, wrapped: str) -> None:
    data = Own()
    found = WRAPPED[wrapped](data)
    before = of_data(found)
    assert of_data(found) == before
    OF_DATA[what](data)
    assert of_data(found) != before


def test_what_is_never_of_an_effect_is_no_change() -> None:
    data = Own()
    before = of_data(data)
    data.opened = object()
    assert data.names == ["a"]
    assert of_data(data) == before
    pair = [(1, float("nan")), (2.0, "a")]
    assert of_value(pair) == of_value(pair)
    assert of_value(tuple(pair)) == of_value(tuple(copy.copy(pair)))


def test_the_generators_that_each_phase_seeds_are_no_state_of_a_task() -> None:
    held = [random.random, np.random.rand, torch.default_generator]
    before = of_value(held)
    random.random(), np.random.rand(1), torch.rand(1)
    assert of_value(held) == before


def test_how_far_an_iterator_is_cannot_be_known() -> None:
    for found in (iter([1]), itertools.count(), (one for one in [1])):
        assert of_value(found) != of_value(found)


def test_looking_at_generators_draws_nothing() -> None:
    held, other = Held(), Held()
    marks_of(held)
    assert held.rng.random() == other.rng.random()
    assert held.random.random() == other.random.random()
    assert torch.equal(torch.rand(1, generator=held.torch), torch.rand(1, generator=other.torch))


def test_foreign_classes_are_not_looked_into() -> None:
    assert of_value(nn.Linear) == id(nn.Linear) or of_value(nn.Linear)[1] == ()
    module = ModuleType("some")
    before = of_value(module)
    module.n = 1  # type: ignore[attr-defined]
    assert of_value(module) == before


@pytest.mark.parametrize("order", ["C", "F", "step"])
def test_marks_of_a_large_table_are_cheap(order: str) -> None:
    table = np.zeros((280_000, 30), np.float32, order="F" if order == "F" else "C")
    x = torch.from_numpy(table[:, ::2] if order == "step" else table)
    data = TensorDataset(x, torch.zeros(280_000))
    found = ClientData(Subset(data, list(range(250_000))), Subset(data, list(range(30_000))))
    of_data(found)
    seconds = []
    for _ in range(5):
        begun = time.thread_time()
        of_data(found)
        seconds.append(time.thread_time() - begun)
    # One copy of it takes more.
    assert min(seconds) < 0.005, seconds
    assert sys.getsizeof(of_data(found)) < 1000


def test_a_path_is_its_text_whatever_it_has_cached() -> None:
    path = Path("data") / "a.png"
    before = of_data([(path, 1)])

    assert str(path.with_suffix(".jpg")) == "data/a.jpg"
    assert hash(path) == hash(Path("data/a.png"))
    assert path.name == "a.png"
    assert of_data([(path, 1)])[1:] == before[1:]
    assert of_data([(path.parent, 1)])[1:] != before[1:]
