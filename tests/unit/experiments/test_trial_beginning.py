"""A trial begins with ``model.initial``, as the run would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from fl_queue.config import loading
from fl_queue.errors import FLQueueError
from fl_queue.experiments import trial

SHARES = ("data.shares=2",)


def begun(path: Path, *changes: str) -> trial.Trial:
    return trial.run_trial(loading.load("mnist-3v7", (f"model.initial={path}", *SHARES, *changes)))


def saved(path: Path, **arrays: Any) -> Path:
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)
    return path


def test_a_trial_trains_from_the_file(tmp_path: Path) -> None:
    zero = saved(
        tmp_path / "zero.safetensors", weight=np.zeros((1, 784), "<f4"), bias=np.zeros(1, "<f4")
    )

    found, plain = begun(zero), trial.run_trial(loading.load("mnist-3v7", SHARES))

    # A probability of one half is one half from both classes.
    assert found.base["loss"] == pytest.approx(0.5, rel=1e-6)
    assert abs(plain.base["loss"] - 0.5) > 1e-3
    assert found.num_examples == plain.num_examples


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"weight": np.zeros((2, 784), "<f4"), "bias": np.zeros(1, "<f4")}, "weight has shape (2, 784), the model's"),
        ({"weight": np.zeros((1, 784), "<f4")}, "tensor 'bias' is missing"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_fit_is_named_before_the_training(
    tmp_path: Path, arrays: dict[str, Any], text: str
) -> None:
    with pytest.raises(FLQueueError) as caught:
        begun(saved(tmp_path / "w.safetensors", **arrays))
    assert text in str(caught.value)
