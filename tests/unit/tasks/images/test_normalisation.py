"""The normalisation of pretrained weights is in the model: it takes raw pixels, and its numbers do not travel."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import get_model

from fl_queue.client.local_update import initial_model
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import ConfigError
from fl_queue.models.initial import from_file
from fl_queue.tasks.images.normalisation import IMAGENET, Normalise
from fl_queue.tasks.loading import load_task
from fl_queue.training.model_tensors import state_of


def config_of(**options: object) -> RunConfig:
    task = {"classes": "a,b", "image_size": 32} | options
    return RunConfig.from_dict({"run": {"task": "image-folder"}, "task": task})


def test_the_numbers_are_those_of_torchvisions_weights() -> None:
    from torchvision import models

    for name in (
        "ResNet18",
        "ResNet34",
        "ResNet50",
        "MobileNet_V3_Small",
        "EfficientNet_B0",
        "DenseNet121",
    ):
        preset = getattr(models, f"{name}_Weights").IMAGENET1K_V1.transforms()
        assert (tuple(preset.mean), tuple(preset.std)) == IMAGENET


def test_pixels_are_normalised_in_front_of_the_model() -> None:
    task = load_task("image-folder", config_of(normalise="imagenet"))
    model = task.build_model().eval()
    assert isinstance(model[0], Normalise)  # type: ignore[index]
    pixels = torch.rand(2, 3, 32, 32)
    means, deviations = (torch.tensor(one).reshape(1, 3, 1, 1) for one in IMAGENET)
    with torch.no_grad():
        assert torch.equal(model(pixels), model[1]((pixels - means) / deviations))  # type: ignore[index]
        assert torch.equal(copy.deepcopy(model)(pixels), model(pixels))


def test_only_the_names_of_the_tensors_differ() -> None:
    plain, _ = initial_model(load_task("image-folder", config_of()), 0)
    task = load_task("image-folder", config_of(normalise="imagenet"))
    wrapped, _ = initial_model(task, 0)
    assert [spec.name for spec in wrapped.tensors] == [f"net.{spec.name}" for spec in plain.tensors]
    assert not any("means" in name for name in state_of(task.build_model()))


def test_torchvisions_weights_are_loaded_into_the_model_behind_it(tmp_path: Path) -> None:
    net = get_model("mobilenet_v3_small", weights=None, num_classes=1000)
    path = tmp_path / "weights.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in net.state_dict().items()}, path)
    config = RunConfig.from_dict(
        {
            "run": {"task": "image-folder"},
            # As docs/guides/images.md has it.
            "model": {
                "initial": str(path),
                "initial_mode": "partial",
                "initial_map": ["-> net."],
                "initial_fresh": ["net.classifier.3.*"],
            },
            "task": {
                "model": "mobilenet_v3_small",
                "classes": "a,b",
                "image_size": 32,
                "normalise": "imagenet",
            },
        }
    )
    manifest, built = initial_model(load_task("image-folder", config), 0)
    found = from_file(config.model, manifest, built)
    for name, array in net.state_dict().items():
        if not name.startswith("classifier.3"):
            assert np.array_equal(found[f"net.{name}"], array.numpy())
    assert found["net.classifier.3.weight"].shape == (2, 1024)
    assert np.array_equal(found["net.classifier.3.weight"], built["net.classifier.3.weight"])


def test_grey_models_have_no_such_normalisation() -> None:
    with pytest.raises(ConfigError, match="channels = 3") as caught:
        load_task("image-folder", config_of(normalise="imagenet", channels=1)).build_model()
    assert caught.value.field == "task.normalise"
