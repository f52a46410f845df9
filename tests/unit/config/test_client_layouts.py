"""What a run's clients keep, by its config."""

from __future__ import annotations

from typing import Any

import pytest

from fl_queue.config.client_layouts import layouts_of
from fl_queue.config.run_config import RunConfig
from fl_queue.protocol.manifest import Manifest, TensorSpec

MANIFEST = Manifest(
    (
        TensorSpec("b", (), "parameter"),
        TensorSpec("frozen", (9,), "parameter"),
        TensorSpec("mean", (2,), "float_buffer"),
        TensorSpec("w", (3, 2), "parameter"),
    ),
    private=("b",),
    frozen=("frozen",),
)
ADAM = {"exp_avg/b": (), "exp_avg/w": (3, 2), "exp_avg_sq/b": (), "exp_avg_sq/w": (3, 2)}


@pytest.mark.parametrize(
    ("train", "kept"),
    [
        ({"momentum": 0.9, "optimizer_state": "reset"}, {}),
        ({"momentum": 0.9}, {"momentum_buffer/b": (), "momentum_buffer/w": (3, 2)}),
        ({"optimizer": "adam"}, ADAM | {"step/b": (), "step/w": ()}),
        (
            {"optimizer": "adam", "precision": "float16"},
            ADAM | {"step/b": (), "step/w": (), "~scale": (2,)},
        ),
        ({"optimizer": "lion"}, {"exp_avg/b": (), "exp_avg/w": (3, 2)}),
    ],
)
def test_the_state_of_the_optimizer_is_of_what_is_trained(
    train: dict[str, Any], kept: dict[str, Any]
) -> None:
    """Private parameters among it, without frozen ones and buffers."""
    config = RunConfig.from_dict({"train": {"optimizer_state": "keep", **train}})

    layouts = layouts_of(config, config.plain_strategy(), MANIFEST)

    assert layouts.keys() == {"private", *(["optimizer"] if kept else [])}
    found = layouts.get("optimizer", Manifest(()))
    assert {spec.name: spec.shape for spec in found.tensors} == kept
    assert {spec.dtype for spec in found.tensors} <= {"float32"}
