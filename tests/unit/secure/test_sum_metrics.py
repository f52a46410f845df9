"""Metrics as words: their sums finish as those of clients in clear do."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from fl_queue import metrics
from fl_queue.secure import sum_metrics

PARTS: list[dict[str, Any]] = [
    {"num_examples": 10, "loss_sum": 2.5, "confusion": [[4, 1], [2, 3]]},
    {"num_examples": 30, "loss_sum": 4.25, "confusion": [[14, 1], [2, 13]]},
]


def test_loss_and_accuracy_are_those_of_the_plain_sums() -> None:
    total = sum(map(sum_metrics.words, PARTS), np.zeros(5, np.int64))
    found = metrics.finish(sum_metrics.sums_of(total, 2))
    plain = metrics.finish(metrics.merge_clients({"a": PARTS[0], "b": PARTS[1]}))

    assert found == {"loss": plain["loss"], "accuracy": plain["accuracy"]}


@pytest.mark.parametrize(
    ("sums", "expected"),
    [
        ({}, [0, 0, 0, 0, 0]),
        ({"num_examples": 0, "loss_sum": 1.0}, [0, 0, 0, 0, 0]),
        ({"num_examples": 4, "loss_sum": math.nan}, [4, 0, 0, 0, 0]),
        ({"num_examples": 4, "loss_sum": 1e30}, [4, 0, 0, 0, 0]),
        ({"num_examples": 4, "loss_sum": 2.0**28}, [4, 2**44, 4, 0, 0]),
        ({"num_examples": 4, "loss_sum": -0.5, "loss_items_sum": 100}, [4, -(2**15), 100, 0, 0]),
        ({"num_examples": 4, "accuracy_sum": 3}, [4, 0, 0, 3, 4]),
        ({"num_examples": 4, "accuracy_sum": 9}, [4, 0, 0, 0, 0]),
        ({"num_examples": 4, "f1_sum": 3}, [4, 0, 0, 0, 0]),
    ],
)
def test_the_words_of_sums(sums: dict[str, Any], expected: list[int]) -> None:
    assert sum_metrics.words(sums).tolist() == expected


def test_a_client_that_told_no_loss_takes_nothing_from_the_others() -> None:
    total = sum_metrics.words(PARTS[0]) + sum_metrics.words({"num_examples": 90})

    assert metrics.finish(sum_metrics.sums_of(total, 2)) == {"loss": 0.25, "accuracy": 0.7}


@pytest.mark.parametrize(
    "total",
    [[0, 1, 1, 1, 1], [-1, 0, 0, 0, 0], [5, 0, -1, 0, 0], [5, 0, 5, 6, 5], [5, 0, 5, -1, 5]],
)
def test_counts_that_cannot_be_are_no_metrics(total: list[int]) -> None:
    assert sum_metrics.sums_of(np.array(total), 2) == {}
