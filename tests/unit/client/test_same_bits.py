"""
A process that keeps the task and its data makes the bits of fresh ones; what would change them ends it.

Each phase begins with its own seed (``tasks.phases``), a context notes what is read of it (``tasks.noted_context``).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.images import save_image
from tests.support.kept_rounds import (
    CSV,
    check_same_bits,
    config_of,
    digest_of,
    fresh,
    own_module,
    resident,
    site_of,
)
from tests.support.site_rounds import SiteRounds

pytestmark = pytest.mark.usefixtures(own_module.__name__)

NAIVE: dict[str, dict[str, Any]] = {
    "mnist": {"run": {"task": "mnist-3v7"}},
    "csv": CSV,
    "function": {"run": {"task": "kept_own:made"}},
    "declaring": {"run": {"task": "kept_own:declaring"}},
    "class": {"run": {"task": "kept_own:Own"}},
    "round": {"run": {"task": "kept_own:Own"}, "task": {"reads_round": True}},
    "scaffold": CSV | {"aggregation": {"strategy": "scaffold", "weighting": "uniform"}},
    "optimizer": CSV | {"train": {"optimizer": "adam", "optimizer_state": "keep"}},
    "ditto": {"run": {"task": "kept_own:made"}, "aggregation": {"strategy": "ditto"}},
    "finetuned": CSV | {"train": {"finetune_epochs": 1}},
}


@pytest.mark.parametrize("case", NAIVE)
def test_kept_data_change_no_bit(tmp_path: Path, case: str) -> None:
    config = config_of(NAIVE[case])
    one = site_of(tmp_path, "fresh")
    wanted = digest_of(SiteRounds(one, config, fresh(one)))
    other = site_of(tmp_path, "resident")
    ask, changed = resident(other)
    between = SiteRounds(other, config_of(CSV), ask, run="run-ba9876543210")

    found = digest_of(SiteRounds(other, config, ask), between)

    assert found == wanted
    assert not any(changed), changed
    assert found[-1].header.metrics != found[-2].header.metrics


MNIST: dict[str, Any] = {
    "data": {"train_per_class": [6, 6], "validation_per_class": [3, 3]},
    "train": {"epochs": 1},
}
IMAGES: dict[str, Any] = {
    "run": {"task": "image-folder"},
    "data": {"partition": "site", "validation_fraction": 0.25},
    "train": {"epochs": 1},
    "task": {
        "classes": "a,b",
        "image_size": 16,
        "model": "mobilenet_v3_small",
        "augment": ["flip", "crop"],
        "class_weights": "balanced",
    },
}
ADAMW: dict[str, Any] = {"optimizer": "adamw", "schedule": "cosine", "momentum": 0.0}
#: Name -> config, and settings of the site: threads, processes that read samples.
BUILT_IN: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "2nn": (MNIST | {"run": {"task": "mnist-2nn"}}, {}),
    "cnn": (MNIST | {"run": {"task": "mnist-cnn"}}, {"max_examples": 32}),
    "images": (IMAGES, {}),
    "images, loaders": (IMAGES, {"loader_workers": 2}),
    "csv, adamw": (CSV | {"task": {"hidden": [8]}, "train": ADAMW}, {}),
    "function, loaders": (
        {"run": {"task": "kept_own:made"}, "train": {"epochs": 1}},
        {"loader_workers": 2},
    ),
    "fedprox": (
        {"run": {"task": "kept_own:made"}, "aggregation": {"strategy": "fedprox"}},
        {},
    ),
    "private": ({"run": {"task": "kept_own:made"}, "model": {"private": ["1.*"]}}, {}),
    "arrays": ({"run": {"task": "kept_own:Means"}, "train": {"epochs": 1}}, {}),
}


@pytest.mark.parametrize("case", BUILT_IN)
def test_each_kind_of_task_has_the_bits_of_fresh_processes(tmp_path: Path, case: str) -> None:
    raw, settings = BUILT_IN[case]
    for number in range(16 if raw is IMAGES else 0):
        shade = (number * 10, 90 - number, 40)
        save_image(tmp_path / "data/train" / "ab"[number % 2] / f"{number}.png", shade)

    check_same_bits(tmp_path, config_of(raw), **settings)


@pytest.mark.parametrize(
    ("leak", "word"),
    [
        ("attribute", "task attribute 'seen'"),
        ("global", "global 'CALLS' of kept_own"),
        ("generator", "task attribute 'rng'"),
        ("torch", "the samples"),
        ("numpy", "the samples"),
        ("cwd", "the working folder"),
        ("environ", "the environment"),
        ("dtype", "torch's default dtype"),
        ("thread", "the threads"),
    ],
)
def test_what_a_training_leaves_behind_is_named_and_changes_no_later_round(
    tmp_path: Path, leak: str, word: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    config = config_of({"run": {"task": "kept_own:Own"}, "task": {"leak": leak}})
    one = site_of(tmp_path, "fresh")
    wanted = digest_of(SiteRounds(one, config, fresh(one)))
    other = site_of(tmp_path, "resident")
    before = str(Path.cwd()), dict(os.environ), torch.get_default_dtype()
    ask, changed = resident(other)

    found = digest_of(SiteRounds(other, config, ask))

    assert [word] in changed
    assert f"{word} changed in training" in caplog.text
    assert (str(Path.cwd()), dict(os.environ), torch.get_default_dtype()) == before
    assert found == wanted
