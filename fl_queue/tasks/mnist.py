"""
MNIST: threes against sevens, and ten digits with the two models of the FedAvg paper.

Pixels are float32 in [0, 1] (byte / 255), without any other normalisation. Nothing is cached on
disk; the full set is downloaded when its folder lacks it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from fl_queue.common import data_folder, files
from fl_queue.data.idx import read_idx
from fl_queue.errors import ConfigError, DataError
from fl_queue.protocol.model_usage import ModelUsage
from fl_queue.tasks.base import ClientData, Task
from fl_queue.tasks.context import ClientContext
from fl_queue.training.sgd import Samples

_EXCERPT = Path(__file__).parent.parent / "data"
_SEVEN, _THREE = 7, 3
_TO_DO = (
    "put train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz and "
    't10k-labels-idx1-ubyte.gz there, or set data.source = "excerpt"'
)


class Digits(Task):
    """Ten digits as (N, 784) pixels; ``digits`` picks those a task uses."""

    digits: tuple[int, ...] = tuple(range(10))
    skews = True

    def client_data(self, context: ClientContext) -> ClientData:
        """
        The client's share of the training images, a part of it held out.

        Raises:
            DataError: The files are missing or damaged.
            ConfigError: ``site`` with the shipped excerpt, or no such share.
        """
        if self.config.data.partition == "site" and self.config.data.source == "excerpt":
            raise ConfigError(
                "data.partition",
                "site would give every client the same shipped images; "
                'set data.source = "full", or another partition',
                public=True,
            )
        images, labels = self._read(context.data_dir, "train")
        skew = self.skew(context)
        train, validation = self.split(labels, context)
        return ClientData(
            self._dataset(skew.apply(_pixels(images[train]), train), labels[train]),
            self._dataset(skew.apply(_pixels(images[validation]), validation), labels[validation]),
        )

    def depends_on(self, context: ClientContext) -> Iterable[Path]:
        """The four files, at each place where they are looked for."""
        folder = self._folder(context.data_dir)
        return [
            path
            for part in ("train", "t10k")
            for name in _names(part)
            for path in _places(folder, name)
        ]

    def test_data(self, data_dir: str) -> Samples:
        """
        All test images of the task's digits.

        Raises:
            DataError: The files are missing or damaged.
        """
        images, labels = self._read(data_dir, "t10k")
        return self._dataset(_pixels(images), labels)

    def usage(self) -> ModelUsage:
        """Pixels in, a score for each digit out."""
        shape = ", ".join(map(str, self.example_input().shape[1:]))
        return ModelUsage(
            f"grey pixels (B, {shape}), float32 in [0, 1]: byte / 255, white ink on black, row by row",
            f"scores (B, {len(self.digits)}); softmax gives probabilities",
            tuple(map(str, self.digits)),
            {"image size": "28 x 28"},
        )

    def example_input(self) -> Tensor:
        """A black image."""
        return self.shape_images(torch.zeros(1, 28, 28))

    def shape_images(self, pixels: Tensor) -> Tensor:
        """Input of the model, from pixels (N, 28, 28) in [0, 1]."""
        return pixels.reshape(len(pixels), 784)

    def target_of(self, labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """Class indices (N,) of digits (N,)."""
        return labels

    def _read(self, data_dir: str, part: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Images (N, 28, 28) and digits (N,) of ``train`` or ``t10k``, read-only."""
        folder = self._folder(data_dir)
        files = _files(folder, part)
        if data_dir and folder != _EXCERPT:
            for file in files:
                data_folder.checked(data_dir, file)
        return _read(*files, tuple(map(_stamp, files)), self.digits)

    def _folder(self, data_dir: str) -> Path:
        return _full_folder(data_dir) if self.config.data.source == "full" else _EXCERPT

    def _dataset(self, pixels: Tensor, labels: NDArray[np.int64]) -> TensorDataset:
        target = self.target_of(labels.copy())
        return TensorDataset(self.shape_images(pixels), torch.from_numpy(target))


class ThreesAndSevens(Digits):
    """
    Threes (class 1) against sevens (class 0), one linear layer 784 -> 1.

    ``config/mnist-3v7.toml`` gives each client 20 to 30 training and 10 to 20 validation images of
    either digit, drawn once for the run.
    """

    digits = (_THREE, _SEVEN)

    def build_model(self) -> nn.Module:
        """785 parameters; the output (B, 1) is the log-odds of a three."""
        return nn.Linear(784, 1)

    def usage(self) -> ModelUsage:
        """Pixels in, the log-odds of a three out."""
        output = "log-odds (B, 1) of class 1; the sigmoid gives its probability"
        return replace(super().usage(), output=output, labels=("7", "3"))

    def target_of(self, labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """1 for a three, 0 for a seven."""
        return np.where(labels == _THREE, np.int64(1), np.int64(0))

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """
        Mean distance of the probability of a three from what it should be.

        Source:
            Howard and Gugger 2020, "Deep Learning for Coders", chapter 4 (``mnist_loss``).
        """
        three = torch.sigmoid(output.squeeze(1))  # (B,)
        return torch.where(target == 1, 1 - three, three).mean()


class TwoLayerPerceptron(Digits):
    """
    The perceptron "2NN" of the FedAvg paper.

    Source:
        McMahan et al. 2017, arXiv 1602.05629, section 3.
    """

    def build_model(self) -> nn.Module:
        """784-200-200-10 with ReLU: 199,210 parameters."""
        return nn.Sequential(
            OrderedDict(
                hidden1=nn.Linear(784, 200),
                relu1=nn.ReLU(),
                hidden2=nn.Linear(200, 200),
                relu2=nn.ReLU(),
                output=nn.Linear(200, 10),
            )
        )


class ConvNet(Digits):
    """
    The CNN of the FedAvg paper.

    Source:
        McMahan et al. 2017, arXiv 1602.05629, section 3; its parameter count is reached only with
        padding that keeps the size.
    """

    def shape_images(self, pixels: Tensor) -> Tensor:
        """(N, 1, 28, 28)."""
        return pixels.unsqueeze(1)

    def build_model(self) -> nn.Module:
        """Two 5x5 convolutions with ReLU and pooling, 512 units: 1,663,370 parameters."""
        return nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(1, 32, 5, padding=2),  # (B, 32, 28, 28)
                relu1=nn.ReLU(),
                pool1=nn.MaxPool2d(2),  # (B, 32, 14, 14)
                conv2=nn.Conv2d(32, 64, 5, padding=2),  # (B, 64, 14, 14)
                relu2=nn.ReLU(),
                pool2=nn.MaxPool2d(2),  # (B, 64, 7, 7)
                flatten=nn.Flatten(),
                hidden=nn.Linear(64 * 7 * 7, 512),
                relu3=nn.ReLU(),
                output=nn.Linear(512, 10),
            )
        )


def _pixels(images: NDArray[np.uint8]) -> Tensor:
    """(N, 28, 28) float32 in [0, 1]."""
    return torch.from_numpy(images.astype(np.float32)) / 255


def _stamp(file: Path) -> tuple[int, int]:
    """Identity of a file that was read: when it was written, and its size in bytes."""
    found = file.stat()
    return found.st_mtime_ns, found.st_size


@lru_cache(maxsize=4)
def _read(
    images_file: Path,
    labels_file: Path,
    stamps: tuple[tuple[int, int], ...],
    digits: tuple[int, ...],
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """
    Images (N, 28, 28) and labels (N,) of some digits, read-only.

    A process that trains many clients of one data set reads and unpacks it once; as bytes, since
    pixels in float32 are four times as large and quick to make.
    """
    images = read_idx(images_file, 3)
    labels = read_idx(labels_file, 1).astype(np.int64)
    if images.shape != (len(labels), 28, 28):
        raise DataError(
            str(images_file),
            f"has shape {images.shape}, and {labels_file.name} has {len(labels)} labels; "
            "the two are not of one data set",
            public=True,
        )
    used = np.isin(labels, digits)
    kept = images[used], labels[used]
    for array in kept:
        array.setflags(write=False)
    return kept


def _full_folder(data_dir: str) -> Path:
    """The folder of the full set; the user's cache when no folder is configured."""
    if not data_dir:
        return Path.home() / ".cache" / "fl-queue" / "mnist"
    folder = Path(data_dir)
    if not folder.is_dir():
        raise DataError(
            data_dir,
            "there is no such folder; correct data.dir or --data, or create it",
            public=True,
        )
    return folder


def _files(folder: Path, part: str) -> tuple[Path, Path]:
    """Paths of images and labels of ``train`` or ``t10k``, downloaded first if need be."""
    names = _names(part)
    found = [_find(folder, name) for name in names]
    if None in found:
        _download(folder)
        found = [_find(folder, name) for name in names]
    images, labels = found
    if images is None or labels is None:
        missing = names[found.index(None)]
        raise DataError(
            str(folder), f"has no {missing}; put the four MNIST files there", public=True
        )
    return images, labels


def _names(part: str) -> tuple[str, str]:
    """Names of the files of images and labels."""
    return f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"


def _find(folder: Path, name: str) -> Path | None:
    return next((path for path in _places(folder, name) if path.is_file()), None)


def _places(folder: Path, name: str) -> Iterator[Path]:
    """Where a file may be, the first first."""
    # MNIST/raw is where torchvision keeps them.
    for place in (folder, folder / "MNIST" / "raw"):
        yield from (place / file for file in (name, f"{name}.gz"))


def _download(folder: Path) -> None:
    # Imported here: it costs two seconds, and every other job reads files that are there.
    from torchvision.datasets import MNIST

    try:
        # The clients of one machine start together, perhaps as several users.
        with files.file_lock(folder / ".download.lock", files.SHARED):
            # Does nothing when another client of this machine has downloaded it meanwhile.
            MNIST(str(folder), download=True)
    except (OSError, RuntimeError) as exc:
        raise DataError(
            str(folder),
            f"has no MNIST files, and they cannot be downloaded ({exc}); {_TO_DO}",
            public=f"has no MNIST files, and they cannot be downloaded; {_TO_DO}",
        ) from exc
