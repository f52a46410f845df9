"""Pixels between a decoder and the model: scaled values, resized and brought to the model's channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fl_queue.tasks.images.settings import ImageSettings, refused

#: Weights of red, green and blue in grey. Source: ITU-R Rec. BT.601-7, section 2.5.1.
_REC_601 = np.array([0.299, 0.587, 0.114])
_MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True)
class Picture:
    """
    One decoded image.

    Args:
        pixels: An image of 8 bits, mode ``L`` or ``RGB`` as the model wants it; or values in [0, 1], float64
            (channels, height, width), with 1 or 3 channels.
        is_reduced: Whether 16 bits of colour were read as 8.
        clipped: How many values lay outside the range of black and white.
    """

    pixels: Image.Image | NDArray[np.float64]
    is_reduced: bool = False
    clipped: int = 0

    @property
    def is_constant(self) -> bool:
        """Whether all pixels have the same colour."""
        if isinstance(self.pixels, Image.Image):
            pixels = np.asarray(self.pixels)
            return bool((pixels == pixels[:1, :1]).all())
        return bool((self.pixels == self.pixels[:, :1, :1]).all())

    def tensor(self, settings: ImageSettings) -> Tensor:
        """Pixels as the model has them: (channels, height, width), float32 in [0, 1]."""
        if isinstance(self.pixels, Image.Image):
            return _eight_bits(self.pixels, settings)
        return _floats(self.pixels, settings)


def in_channels(image: Image.Image, channels: int) -> Image.Image:
    """An image of 8 bits in the mode of a model with so many channels."""
    # Pillow converts LAB to RGB and to nothing else.
    image = image.convert("RGB") if image.mode == "LAB" else image
    return image.convert(_MODES[channels])


def scaled(
    values: NDArray[Any], settings: ImageSettings, what: str
) -> tuple[NDArray[np.float64], int]:
    """
    Values between black and white of ``task.range``, clipped; and how many were outside.

    Args:
        values: Of any shape and number type.
        what: The kind of image, for the message.

    Raises:
        UnusableImage: There is no ``task.range``, or a value is not finite.
    """
    if not settings.range:
        raise refused(
            f"is {what}, whose black and white are unknown; give task.range = [black, white]",
            f"an image is {what}, whose black and white are unknown; give task.range = [black, white]",
        )
    numbers = values.astype(np.float64)
    if not np.isfinite(numbers).all():
        raise refused(
            "has values that are not finite; repair it",
            "an image has values that are not finite; repair it",
        )
    low, high = settings.range
    unit = (numbers - low) / (high - low)
    clipped = int(((unit < 0) | (unit > 1)).sum())
    return unit.clip(0.0, 1.0), clipped


def _eight_bits(image: Image.Image, settings: ImageSettings) -> Tensor:
    if settings.side:
        image = image.resize((settings.side, settings.side), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, dtype=np.uint8).reshape(image.height, image.width, -1)
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy()).to(torch.float32) / 255


def _floats(values: NDArray[np.float64], settings: ImageSettings) -> Tensor:
    if settings.channels == 1 and len(values) == 3:
        values = np.tensordot(_REC_601, values, axes=1)[None]
    planes = [_resized(plane.astype(np.float32), settings.side) for plane in values]
    pixels = torch.from_numpy(np.stack(planes)).clamp(0, 1)
    return pixels.expand(settings.channels, *pixels.shape[1:]).clone()


def _resized(plane: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """One channel, resized as images of 8 bits are: bilinear, over all pixels that an output pixel covers."""
    if not side:
        return plane
    small = Image.fromarray(plane).resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(small, dtype=np.float32)
