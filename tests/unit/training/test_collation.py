"""Padding of unequal samples; a sample that does not fit the others is named by its index."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import Subset

from fl_queue.errors import ConfigError
from fl_queue.tasks import pad
from fl_queue.training import sgd


class Named(NamedTuple):
    """A sample by name."""

    words: Any
    tag: Any


@given(
    st.lists(st.lists(st.integers(0, 9), max_size=5), min_size=1, max_size=5), st.integers(-100, 9)
)
def test_rows_are_filled_up_at_their_ends(rows: list[list[int]], value: int) -> None:
    most = max(map(len, rows))
    expected = [row + [value] * (most - len(row)) for row in rows]
    arrays = [np.array(row, np.int64) for row in rows]
    assert pad(arrays, value).tolist() == expected
    assert pad([*map(torch.from_numpy, arrays)], value).tolist() == expected
    if all(rows):
        assert pad(rows, value).tolist() == expected


def test_each_part_has_its_filling_and_all_dimensions_are_filled() -> None:
    samples = [
        {"ids": [1, 2, 3], "labels": torch.tensor([1, 2, 3]), "weight": 1.0},
        {"ids": [4], "labels": torch.tensor([4]), "weight": 2.0},
    ]
    found = pad(samples, {"labels": -100})
    assert found["ids"].tolist() == [[1, 2, 3], [4, 0, 0]]
    assert found["labels"].tolist() == [[1, 2, 3], [4, -100, -100]]
    assert found["weight"].tolist() == [1.0, 2.0]
    images = [(torch.ones(1, 2), 0), (torch.ones(2, 1), 1)]
    batch, targets = pad(images, (9, 0))
    assert batch.tolist() == [[[1, 1], [9, 9]], [[1, 9], [1, 9]]]
    assert targets.tolist() == [0, 1]
    named = pad([Named([1], 0), Named([1, 2], 1)])
    assert isinstance(named, Named)
    assert named.words.shape == (2, 2)


@pytest.mark.parametrize(
    ("rows", "dtype"),
    [
        ([[1, 2], [0.5, 1.5, 2.5]], torch.float32),
        ([[0.5, 1.5, 2.5], [1, 2]], torch.float32),
        ([torch.tensor([1]), torch.tensor([0.5], dtype=torch.float64)], torch.float64),
        ([np.array([True]), np.array([7], np.int32)], torch.int32),
        ([[], [1, 2]], torch.int64),
        ([[1, 2], []], torch.int64),
        ([[], []], torch.float32),
        ([torch.tensor([1.0]), np.array([], np.int64)], torch.float32),
    ],
)
def test_the_numbers_of_all_samples_decide_the_dtype(rows: list[Any], dtype: torch.dtype) -> None:
    found = pad(rows)
    assert found.dtype == dtype
    for row, padded in zip(rows, found.tolist(), strict=True):
        assert padded[: len(row)] == [float(one) for one in row]


def lengths(index: int) -> int:
    return 9 if index == 41 else 12


class Rows:
    """Samples of which number 41 is shorter."""

    def __init__(self, form: Any) -> None:
        self.form = form

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> Any:
        return self.form(index)


FORMS: dict[str, tuple[Any, str]] = {
    "pairs": (lambda i: (torch.zeros(lengths(i)), 0), r"sample 41 does not fit the others: \(9,\) beside \(12,\)"),
    "arrays": (lambda i: (np.zeros(lengths(i)), 0), r"sample 41 .* \(9,\) beside \(12,\)"),
    "mappings": (lambda i: {"x": torch.zeros(lengths(i)), "labels": 0}, r"sample 41 .* \(9,\) beside \(12,\)"),
    "kinds": (lambda i: (torch.zeros(3), None if i == 41 else 1), r"sample 41 .* a NoneType beside a number"),
    "keys": (lambda i: {"x": 1} | ({} if i == 41 else {"labels": 0}), r"sample 41 .* 1 keys beside 2 keys"),
    "sequences": (lambda i: (torch.zeros(3),) * (2 if i == 41 else 3), r"sample 41 .* 2 parts beside 3 parts"),
}  # fmt: skip


#: Processes that read samples pass all errors on in one way: two forms are enough for them.
@pytest.mark.parametrize(
    ("form", "workers"), [*((form, 0) for form in FORMS), ("pairs", 2), ("keys", 2)]
)
def test_a_sample_that_does_not_fit_is_named(form: str, workers: int) -> None:
    sample, text = FORMS[form]
    # A client's part of the data: the index is that of the whole.
    dataset: Any = Subset(Rows(sample), range(63, 10, -1))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=text) as refused:
        sgd.local_sgd(
            nn.Linear(12, 2), dataset, nn.functional.cross_entropy, seed=1, epochs=1, batch_size=16,
            learning_rate=0.1, loader_workers=workers,
        )  # fmt: skip
    assert refused.value.field == "collate"
    assert refused.value.public == refused.value.reason
    assert refused.value.reason.endswith("define collate, or pad")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_collate_of_the_tasks_own_that_fails_names_the_sample_and_no_value(workers: int) -> None:
    def collate(samples: list[Any]) -> Any:
        return torch.zeros(len(samples), 12), torch.tensor([int(word) for word in samples])

    dataset: Any = Rows(lambda index: "Smith" if index == 41 else "1")
    with pytest.raises(ConfigError, match="sample 41 makes no batch") as refused:
        sgd.local_sgd(
            nn.Linear(12, 2), dataset, nn.functional.cross_entropy, seed=1, epochs=1, batch_size=16,
            learning_rate=0.1, loader_workers=workers, collate=collate,
        )  # fmt: skip
    assert "Smith" in refused.value.reason
    assert (
        refused.value.public
        == "sample 41 makes no batch (ValueError); define collate, or return tensors"
    )
