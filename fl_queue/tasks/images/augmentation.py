"""
Random changes of training images, by name; ``config/image_options.py`` describes them.

torchvision's transforms draw from torch's generator, which is seeded for each sample by run, round, client, epoch and
index: a job that is done again draws the same, with any number of processes that read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from fl_queue.errors import ConfigError

Change = Callable[[Tensor], Tensor]
_SMOOTH = InterpolationMode.BILINEAR
#: Name -> the transform for images of a side, pixels.
_CHANGES: dict[str, Callable[[int], Change]] = {
    "flip": lambda side: transforms.RandomHorizontalFlip(),
    "flip-vertical": lambda side: transforms.RandomVerticalFlip(),
    "rotate": lambda side: transforms.RandomRotation(10, _SMOOTH),
    "rotate-any": lambda side: transforms.RandomRotation(180, _SMOOTH),
    "crop": lambda side: transforms.RandomResizedCrop(
        side, (0.8, 1.0), (0.9, 1.1), _SMOOTH, antialias=True
    ),
    "affine": lambda side: transforms.RandomAffine(0, (0.05, 0.05), (0.9, 1.1), None, _SMOOTH),
    "brightness": lambda side: transforms.ColorJitter(0.2, 0.2),
    "colour": lambda side: transforms.ColorJitter(0.2, 0.2, 0.2, 0.05),
    "blur": lambda side: transforms.GaussianBlur(3, (0.1, 1.0)),
    "erase": lambda side: transforms.RandomErasing(0.25),
}


def of(names: Sequence[str], side: int, channels: int) -> Change | None:
    """
    The changes of ``task.augment``, one after the other; None: there are none.

    Args:
        side: Of the images, pixels.
        channels: 1 grey, 3 colour.

    Raises:
        ConfigError: Colours of a grey image are to be changed.
    """
    if "colour" in names and channels != 3:
        raise ConfigError(
            "task.augment", "colour needs task.channels = 3; take brightness", public=True
        )
    if not names:
        return None
    changes: Change = transforms.Compose([_CHANGES[name](side) for name in names])
    return lambda image: changes(image).clamp(0, 1)
