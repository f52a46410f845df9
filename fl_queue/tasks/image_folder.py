"""
Images in class folders, with a torchvision model.

    DATA/train/<class>/<image>            a client's images
    DATA/train/<class>/<owner>/<image>    the same, for data.partition = "natural"
    DATA/test/<class>/<image>             the evaluator's

Pixels are float32 in [0, 1] (byte / 255); any other normalisation is in the model. Images are read on
access, so memory does not grow with their number.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset
from torchvision.models import get_model

from fl_queue.common import data_folder
from fl_queue.common.spelling import nearest
from fl_queue.config.image_options import BALANCED
from fl_queue.errors import ConfigError, DataError
from fl_queue.protocol.model_usage import ModelUsage
from fl_queue.tasks.base import ClientData, Task
from fl_queue.tasks.context import ClientContext
from fl_queue.tasks.feature_skew import Skew
from fl_queue.tasks.images import augmentation, listing, normalisation, survey
from fl_queue.tasks.images.decoding import SUFFIXES, decode
from fl_queue.tasks.images.settings import ImageSettings
from fl_queue.tasks.images.survey import Item
from fl_queue.training.sgd import Loss

_log = logging.getLogger(__name__)


class ImageFiles(Dataset[tuple[Tensor, int]]):
    """
    Images read and resized one at a time: pairs of pixels (channels, side, side) and class index.

    Args:
        items: Files with their class index.
        settings: How they are decoded.
        skew: Artificial difference of the client's images; None: none.
        samples: (N,) index of each file in the data set; needed for a skew.
        change: Random change of each image, of training data alone; None: none.
    """

    def __init__(
        self,
        items: list[Item],
        settings: ImageSettings,
        skew: Skew | None = None,
        samples: Sequence[int] = (),
        change: augmentation.Change | None = None,
    ) -> None:
        self.change = change
        self.skew = skew
        self.samples = samples
        self.items = items
        self.settings = settings

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.items[index]
        image = decode(path, self.settings)
        if self.skew is not None:
            image = self.skew.apply(image.unsqueeze(0), [self.samples[index]])[0]
        if self.change is not None:
            image = self.change(image)
        return image, label


class ImageFolderTask(Task):
    """
    Classify the images of a folder.

    The order of classes is that of ``task.classes``, or the sorted folder names when that is empty;
    sites with folders of their own should list them, so that all have the same order.
    """

    skews = True

    def build_model(self) -> nn.Module:
        """
        The torchvision model ``task.model`` with fresh weights and one output per class.

        Raises:
            ConfigError: The classes are unknown, or the images are too small for the model.
        """
        channels, side = self._channels(), self.options["image_size"]
        model: nn.Module = get_model(
            self.options["model"], weights=None, num_classes=len(self._classes())
        )
        if channels != 3:
            _replace_first_convolution(model, channels)
        if self.options["normalise"] == "imagenet":
            model = self._normalised(model)
        _check_image_size(model, channels, side)
        return model

    def client_data(self, context: ClientContext) -> ClientData:
        """
        The client's share of ``train``, or all of it with ``partition = "site"``.

        Raises:
            DataError: A folder is missing, empty, or has a class that is not listed.
            ConfigError: No data folder, or no such share.
        """
        items, unused = self._items(context.data_dir, "train")
        labels = np.array([label for _, label in items], dtype=np.int64)
        owners = None
        folder = Path(context.data_dir) / "train"
        is_owned = all(len(path.relative_to(folder).parts) > 2 for path, _ in items)
        if is_owned or self.config.data.partition == "natural":
            owners = np.array(self._owners(folder, items))
        train, validation = self.split(labels, context, owners)
        skew = self.skew(context)
        return ClientData(
            self._dataset(
                [items[index] for index in train], skew, train.tolist(), self._augmentation()
            ),
            self._dataset([items[index] for index in validation], skew, validation.tolist()),
            unused,
            listing.fixed(unused, survey.KINDS),
        )

    def depends_on(self, context: ClientContext) -> Iterable[Path]:
        """``train`` and ``test``, with all that lies in them."""
        return data_folder.named(context.data_dir, "train", "test") if context.data_dir else ()

    def check_data(self, data: ClientData) -> Mapping[str, int]:
        """
        Decode every image once, for some minutes at most; counts of those that lose something.

        Raises:
            DataError: One cannot be used, or the first of them have no content.
        """
        settings = ImageSettings.of(self.options)
        counts = survey.check([*_items_of(data.train), *_items_of(data.validation)], settings)
        return counts - Counter(data.counts)

    def training_loss(self, data: ClientData, context: ClientContext) -> Loss:
        """
        Cross entropy, with the weights of ``task.class_weights``; evaluations have none.

        Raises:
            ConfigError: There are not as many weights as classes.
        """
        chosen = self.options["class_weights"]
        if not chosen:
            return super().training_loss(data, context)
        count = len(self._classes())
        if chosen == BALANCED:
            weights = balanced(_labels_of(data.train), count)
        else:
            weights = [float(part) for part in chosen.split(",")]
        if len(weights) != count:
            raise ConfigError(
                "task.class_weights", f"has {len(weights)} weights for {count} classes", public=True
            )
        weight = torch.tensor(weights, dtype=torch.float32, device=context.device)

        def loss(output: Tensor, target: Tensor) -> Tensor:
            # A mean over the samples: torch's own is over the weights of the batch, so that a batch of one class
            # would have no weight, and a step its size by the classes that happen to be in its batches.
            return functional.cross_entropy(output, target, weight=weight, reduction="none").mean()

        return loss

    def _augmentation(self) -> augmentation.Change | None:
        return augmentation.of(
            self.options["augment"], self.options["image_size"], self._channels()
        )

    def describe(self, data: ClientData) -> dict[str, list[str]]:
        """Return the classes in order."""
        return {"classes": self._classes()}

    def test_data(self, data_dir: str) -> ImageFiles | None:
        """
        The images of ``test``; None on a machine without a data folder.

        Raises:
            DataError: The folder is missing, empty, or has a class that is not listed.
        """
        return self._dataset(self._items(data_dir, "test")[0]) if data_dir else None

    def usage(self) -> ModelUsage:
        """Describe input and output: pixels, and a score for each class."""
        channels, side = self._channels(), self.options["image_size"]
        colours = "grey" if channels == 1 else "RGB"
        return ModelUsage(
            f"{colours} pixels (B, {channels}, {side}, {side}), float32 in [0, 1]: byte / 255",
            "scores of the classes (B, classes); softmax gives probabilities",
            tuple(self._classes()),
            {"resizing": f"bilinear, to {side} x {side}, whatever the shape"},
        )

    def example_input(self) -> Tensor:
        """A black image."""
        side = self.options["image_size"]
        return torch.zeros(1, self._channels(), side, side)

    def _dataset(
        self,
        items: list[Item],
        skew: Skew | None = None,
        samples: Sequence[int] = (),
        change: augmentation.Change | None = None,
    ) -> ImageFiles:
        self._channels()
        return ImageFiles(items, ImageSettings.of(self.options), skew, samples, change)

    def _owners(self, folder: Path, items: list[Item]) -> list[str]:
        """Owner of each image: the first folder below its class."""
        owners = []
        for path, _ in items:
            below = path.relative_to(folder).parts
            if len(below) < 3:
                raise DataError(
                    str(path),
                    "lies in no owner's folder; with data.partition = natural, images are "
                    "train/<class>/<owner>/<image>",
                    public="an image lies in no owner's folder; with data.partition = natural, images are train/<class>/<owner>/<image>",
                )
            owners.append(below[1])
        return owners

    def _channels(self) -> int:
        channels: int = self.options["channels"]
        if channels not in (1, 3):
            raise ConfigError(
                "task.channels", f"{channels} is neither 1 (grey) nor 3 (colour)", public=True
            )
        return channels

    def _normalised(self, model: nn.Module) -> nn.Module:
        if self._channels() != 3:
            raise ConfigError(
                "task.normalise",
                "imagenet is of colours; set task.channels = 3, where grey is repeated",
                public=True,
            )
        return normalisation.normalised(model)

    def _classes(self) -> list[str]:
        listed = [name.strip() for name in self.options["classes"].split(",") if name.strip()]
        if not listed and not self.config.data.dir:
            raise ConfigError(
                "task.classes",
                "is empty and this machine has no data folder; list the class folder names",
                public=True,
            )
        classes = listed or _folders(data_folder.inside(self.config.data.dir, "train", "data.dir"))
        if len(classes) < 2 or len(set(classes)) < len(classes):
            raise ConfigError(
                "task.classes",
                f"{', '.join(classes)}: two or more different classes are needed",
                public=bool(listed) or "two or more different classes are needed",
            )
        return classes

    def _items(self, data_dir: str, part: str) -> tuple[list[Item], Counter[str]]:
        """List the images of ``train`` or ``test`` with class index, sorted; and count other files by kind."""
        if not data_dir:
            raise ConfigError(
                "data.dir", "is empty; start the worker with --data FOLDER", public=True
            )
        folder = data_folder.inside(data_dir, part, "data.dir")
        classes = self._classes()
        unknown = sorted(set(_folders(folder)) - set(classes))
        if unknown:
            raise DataError(
                str(folder / unknown[0]),
                f"is a class that is not listed ({', '.join(classes)}); add it to task.classes"
                f"{nearest(unknown[0], classes)}",
                public=f"{len(unknown)} of its class folders are not in task.classes; add them there",
            )
        found: dict[Path, listing.Listing] = {}
        items: list[Item] = []
        for label, name in enumerate(classes):
            inner = data_folder.inside(data_dir, name, "task.classes", part=part)
            found[inner] = listing.below(data_dir, inner)
            self._check_class(inner, found[inner])
            items += [(path, label) for path in found[inner].images]
        if not items:
            raise DataError(str(folder), "has no images in its class folders", public=True)
        unused = sum((one.without_links() for one in found.values()), _loose(folder))
        if self._skips:
            usable, counts = survey.usable(items, ImageSettings.of(self.options))
            self._check_usable(found, usable)
            items, unused = usable, unused + counts
        if unused:
            kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(unused.items()))
            _log.warning("%s: not read as images: %s", folder, kinds)
        return items, unused

    @property
    def _skips(self) -> bool:
        return bool(self.options["unreadable"] == "skip")

    def _check_class(self, folder: Path, found: listing.Listing) -> None:
        """Raise DataError for a class folder with files and no image, or with a link that is not skipped."""
        if found.out and not self._skips:
            raise DataError(str(found.out[0]), data_folder.LEAVES, public=True)
        if found.broken and not self._skips:
            raise DataError(
                str(found.broken[0]),
                "is a link that leads nowhere; remove it",
                public='a link leads nowhere; remove it, or set task.unreadable = "skip"',
            )
        if found.is_empty:
            kinds = sorted(found.without_links().items())
            listed = ", ".join(f"{count} {kind}" for kind, count in kinds)
            raise DataError(
                str(folder),
                f"has no image, and {listed}; images are {', '.join(sorted(SUFFIXES))}",
                public="a class folder has files or links, and no image in it",
            )

    def _check_usable(self, found: Mapping[Path, listing.Listing], usable: list[Item]) -> None:
        """Raise DataError for a class folder of whose images none can be used."""
        kept = {path for path, _ in usable}
        for folder, files in found.items():
            if files.images and kept.isdisjoint(files.images):
                raise DataError(
                    str(folder),
                    "has no image that can be used; the log names the reason for each",
                    public="a class folder has images, and no image that can be used",
                )


def _items_of(dataset: Any) -> list[Item]:
    """The files of a data set, also of one that is only a part of it."""
    while not isinstance(dataset, ImageFiles):
        dataset = dataset.dataset
    return dataset.items


def _labels_of(dataset: Any) -> list[int]:
    """Class of each sample, also of a data set that is only a part of one."""
    if isinstance(dataset, ImageFiles):
        return [label for _, label in dataset.items]
    whole = _labels_of(dataset.dataset)
    return [whole[index] for index in dataset.indices]


def balanced(labels: Sequence[int], classes: int) -> list[float]:
    """
    Weights with which each class that is there has the same part in the loss, 1 on the mean of the samples.

    Args:
        labels: Class of each sample.
        classes: How many there are; one without samples has the weight 1.

    Source: King and Zeng 2001, "Logistic regression in rare events data"; ``class_weight="balanced"`` of scikit-learn.
    """
    counts = Counter(labels)
    return [
        len(labels) / (len(counts) * counts[label]) if counts[label] else 1.0
        for label in range(classes)
    ]


def _folders(folder: Path) -> list[str]:
    try:
        names = sorted(
            entry.name for entry in folder.iterdir() if entry.is_dir() and listing.is_visible(entry)
        )
    except OSError as exc:
        raise DataError(
            str(folder), f"cannot be read: {exc.strerror}; it must hold class folders", public=True
        ) from exc
    if not names:
        raise DataError(
            str(folder),
            "has no class folders; put the images into one folder per class",
            public=True,
        )
    return names


def _loose(folder: Path) -> Counter[str]:
    """Files that lie in no class folder, by kind."""
    return Counter(
        listing.kind_of(path) if listing.is_visible(path) else listing.HIDDEN
        for path in folder.iterdir()
        if path.is_file()
    )


def _replace_first_convolution(model: nn.Module, channels: int) -> None:
    """Change the model's input to ``channels`` channels, in place; torchvision's have 3."""
    name, old = next(
        (name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d)
    )
    new = nn.Conv2d(
        channels,
        old.out_channels,
        _pair(old.kernel_size),
        stride=_pair(old.stride),
        padding=old.padding if isinstance(old.padding, str) else _pair(old.padding),
        bias=old.bias is not None,
    )
    model.set_submodule(name, new)


def _pair(size: tuple[int, ...]) -> tuple[int, int]:
    return size[0], size[1]


def _check_image_size(model: nn.Module, channels: int, side: int) -> None:
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, channels, side, side))
    except RuntimeError as exc:
        raise ConfigError(
            "task.image_size",
            f"{side} is too small for this model: {exc}",
            public=f"{side} is too small for this model",
        ) from exc
