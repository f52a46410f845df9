"""Data and models are taken as a task gives them: nothing is read around, turned off or turned on."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset, Subset, TensorDataset

from fl_queue.client import local_update
from fl_queue.client.local_update import UpdateTensors
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import ConfigError, DataError
from fl_queue.protocol.manifest import Manifest
from fl_queue.tasks import calls
from fl_queue.tasks.context import ClientContext
from fl_queue.tasks.images.decoding import decode
from fl_queue.tasks.images.settings import ImageSettings
from fl_queue.tasks.loading import load_task
from fl_queue.training import sgd
from fl_queue.training.mixed_precision import Precision
from fl_queue.training.model_tensors import manifest_of
from fl_queue.training.plain_sgd import PlainSGD

PIXELS = torch.full((60, 3), 99.0)
CLASSES = torch.arange(60) % 3


class Normalised(TensorDataset):
    """What its tensors hold, scaled."""

    def __getitem__(self, index: Any) -> tuple[Tensor, Tensor]:
        pixels, target = super().__getitem__(index)
        return pixels / 99, target


class Doubled(Subset[Any]):
    """A part of a data set, scaled."""

    def __getitem__(self, index: Any) -> tuple[Tensor, Tensor]:
        pixels, target = super().__getitem__(index)
        return 2 * pixels, target

    def __getitems__(self, indices: list[int]) -> Any:
        return [self[index] for index in indices]


class Seen(nn.Module):
    """Notes what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.values, self.sizes = nn.Linear(3, 3), set[float](), list[int]()

    def forward(self, inputs: Tensor) -> Tensor:
        self.values |= set(inputs.reshape(-1).tolist())
        self.sizes.append(len(inputs))
        found: Tensor = self.linear(inputs)
        return found


@pytest.mark.parametrize(
    ("dataset", "value"),
    [
        (Normalised(PIXELS, CLASSES), 1.0),
        (Subset(Normalised(PIXELS, CLASSES), range(30)), 1.0),
        (Doubled(TensorDataset(PIXELS, CLASSES), range(30)), 198.0),
        (Doubled(Normalised(PIXELS, CLASSES), range(30)), 2.0),
        (sgd.joined([Normalised(PIXELS, CLASSES), TensorDataset(PIXELS / 99, CLASSES)]), 1.0),
        (sgd.part_of(Normalised(PIXELS, CLASSES), 20, 0), 1.0),
        (TensorDataset(PIXELS, CLASSES), 99.0),
    ],
)
def test_a_custom_data_set_gives_its_declared_samples(dataset: Any, value: float) -> None:
    model = Seen()
    sgd.local_sgd(model, dataset, cross_entropy, seed=0, epochs=1, batch_size=8, learning_rate=0.1)
    sgd.evaluate(model, dataset, cross_entropy)
    assert model.values == {value}


# Images


def _image(tmp_path: Path, image: Image.Image, suffix: str, **options: Any) -> Path:
    path = tmp_path / f"image{suffix}"
    image.save(path, **options)
    return path


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_are_a_scale_from_black_to_white(
    tmp_path: Path, suffix: str, channels: int
) -> None:
    ramp = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    path = _image(tmp_path, Image.fromarray(ramp), suffix)
    pixels = decode(path, ImageSettings(channels, 64))
    assert pixels.shape == (channels, 64, 64)
    assert pixels.dtype == torch.float32
    for channel in pixels:
        np.testing.assert_allclose(channel.numpy(), ramp / 65535, atol=1e-6)


def test_floating_point_images_hold_their_values_or_are_refused(tmp_path: Path) -> None:
    ramp = np.linspace(0, 1, 64).astype(np.float32).reshape(8, 8)
    good = _image(tmp_path, Image.fromarray(ramp), ".tif")
    np.testing.assert_allclose(decode(good, ImageSettings(1, 8))[0].numpy(), ramp, atol=1e-6)
    for bad in (ramp * 1000, ramp - 0.5, ramp * np.nan):
        path = _image(tmp_path, Image.fromarray(bad), ".tif")
        with pytest.raises(DataError, match=r"image\.tif.*not in 0 to 1"):
            decode(path, ImageSettings(1, 8))


def test_an_image_is_rotated_by_its_exif_orientation(tmp_path: Path) -> None:
    halves = np.zeros((16, 16), np.uint8)
    halves[:, :8] = 255  # White on the left.
    exif = Image.Exif()
    exif[0x0112] = 6  # Shown turned by 90 degrees: white above.
    path = _image(tmp_path, Image.fromarray(halves), ".png", exif=exif)
    pixels = decode(path, ImageSettings(1, 16))[0]
    assert (pixels[:8].min(), pixels[8:].max()) == (1.0, 0.0)


def test_what_is_transparent_is_black(tmp_path: Path) -> None:
    layered = np.full((8, 8, 4), 200, np.uint8)
    layered[:4, :, 3], layered[4:, :, 3] = 0, 255
    pixels = decode(_image(tmp_path, Image.fromarray(layered), ".png"), ImageSettings(3, 8))
    assert pixels[:, :4].max() == 0
    assert torch.all(pixels[:, 5:] == 200 / 255)


# Models


def test_a_module_that_was_built_in_evaluation_mode_stays_so() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.head = nn.BatchNorm1d(3).eval(), nn.Sequential(nn.BatchNorm1d(3))

        def forward(self, inputs: Tensor) -> Tensor:
            found: Tensor = self.head(self.norm(inputs))
            return found

    model = sgd.as_built(Frozen())
    data = TensorDataset(torch.randn(40, 3) + 5, CLASSES[:40])
    sgd.evaluate(model, data, cross_entropy)
    sgd.local_sgd(model, data, cross_entropy, seed=0, epochs=2, batch_size=8, learning_rate=0.1)
    assert torch.all(model.norm.running_mean == 0)
    assert torch.all(model.head[0].running_mean != 0)
    assert (model.norm.training, model.head.training) == (False, True)


def test_a_model_that_was_loaded_in_evaluation_mode_is_trained() -> None:
    model = sgd.as_built(nn.Sequential(nn.BatchNorm1d(3)).eval())
    data = TensorDataset(torch.randn(40, 3) + 5, CLASSES[:40])
    sgd.local_sgd(model, data, cross_entropy, seed=0, epochs=1, batch_size=8, learning_rate=0.1)
    assert torch.all(model[0].running_mean != 0)


def _context(config: RunConfig) -> ClientContext:
    return ClientContext.of(config, client="a", run="r", round_number=1)


def _task(monkeypatch: pytest.MonkeyPatch, function: Any, **sections: Any) -> Any:
    module = ModuleType("as_given")
    module.made = function  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "as_given", module)
    config = RunConfig.from_dict({"run": {"task": "as_given:made"}, **sections})
    return load_task("as_given:made", config, ("as_given:made",))


def test_a_model_that_is_returned_again_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    net, data = nn.Linear(3, 3), TensorDataset(PIXELS, CLASSES)
    for function in (lambda: (net, data), lambda: (nn.Sequential(net), data)):
        for one in net.parameters():
            one.__dict__.clear()
        task = _task(monkeypatch, function, train={"finetune_epochs": 1})
        calls.model(task)
        with pytest.raises(ConfigError, match="new model in each call"):
            calls.model(task)


def test_a_frozen_backbone_may_be_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = nn.Linear(3, 3).requires_grad_(False)
    data = TensorDataset(PIXELS, CLASSES)
    task = _task(monkeypatch, lambda: (nn.Sequential(backbone, nn.Linear(3, 3)), data))
    assert calls.model(task) is not calls.model(task)


class Flagged(Dataset[Any]):
    """Samples whose value shows whether they were changed for training."""

    def __init__(self, value: float, count: int = 60) -> None:
        self.value, self.targets = value, CLASSES[:count]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full((3,), self.value), int(self.targets[index])


def test_validation_is_without_what_training_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {"model": nn.Linear(3, 3), "train": Flagged(1.0), "evaluation": Flagged(0.0)}
    task = _task(monkeypatch, lambda: parts)
    data = task.client_data(_context(task.config))
    assert {float(pixels[0]) for pixels, _ in data.train} == {1.0}
    assert {float(pixels[0]) for pixels, _ in data.validation} == {0.0}
    parts["evaluation"] = Flagged(0.0, 59)
    with pytest.raises(ConfigError, match="59 samples as evaluation"):
        task.client_data(_context(task.config))


def test_a_mask_of_infinities_does_not_spoil_an_update(monkeypatch: pytest.MonkeyPatch) -> None:
    class Masked(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 3)
            mask = nn.Transformer.generate_square_subsequent_mask(4)
            self.register_buffer("mask", mask)

    task = _task(monkeypatch, lambda: (Masked(), TensorDataset(PIXELS / 99, CLASSES)))
    manifest, arrays = local_update.initial_model(task, 0)
    base = {name: array.copy() for name, array in arrays.items()}
    done = local_update.train_update(task, manifest, base, _context(task.config))
    assert np.all(done.tensors["mask"] == 0)
    assert np.any(done.tensors["weight"] != 0)


def test_values_that_become_infinite_are_still_reported() -> None:
    model = nn.Linear(1, 1, bias=False)
    manifest: Manifest = manifest_of(model)
    base = {"weight": np.array([[1.0]], np.float32)}
    with torch.no_grad():
        model.weight[:] = torch.inf
    assert np.isinf(UpdateTensors(manifest, model, base)["weight"]).all()


@pytest.mark.parametrize(("batch_size", "most"), [(1, 4), (8, 32), (64, 256), (600, 256)])
def test_evaluation_takes_batches_that_fit_where_the_training_does(
    batch_size: int, most: int
) -> None:
    model = Seen()
    data = TensorDataset(torch.zeros(300, 3), torch.zeros(300).long())
    sgd.evaluate(model, data, cross_entropy, batch_size=batch_size)
    assert max(model.sizes) == most


def test_a_scaled_loss_begins_where_few_steps_are_lost() -> None:
    # torch's scaler on a CPU stands in for that of a GPU.
    model = nn.Linear(4, 1)
    scaled = Precision("float32", "cpu", scaled=True)
    for _ in range(3):
        scaled.backward(
            nn.functional.mse_loss(model(torch.full((8, 4), 10.0)), torch.full((8, 1), 1e3))
        )
        scaled.step(PlainSGD(model, 1e-6, 0.0, 0.0))
        model.zero_grad()
    assert scaled.skipped == 0
    scaled.backward(model(torch.full((8, 4), torch.inf)).sum())
    scaled.step(PlainSGD(model, 1e-6, 0.0, 0.0))
    assert scaled.skipped == 1
