"""
Feature skew: each client's images are turned and noisy in a degree of its own.

For experiments with one data set that is split over clients. Client i of N, from 0, has the part
(i + 1) / N of ``data.rotation`` and ``data.noise``; the central test set is as it was. It is a
function of seed, client and sample, so every process that reads a client's data reads the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from fl_queue.common.seeding import seed_for


class SkewSettings(Protocol):
    """The fields of ``[data]`` that decide feature skew."""

    @property
    def noise(self) -> float:
        """Standard deviation of the last share's noise."""

    @property
    def rotation(self) -> float:
        """Angle of the last share's images, degrees."""


@dataclass(frozen=True)
class Skew:
    """
    Difference of one client's images from the data set's.

    Args:
        seed: The run's seed.
        client: Its id.
        degrees: Angle by which images are turned, counter-clockwise.
        deviation: Standard deviation of the noise, in the unit of the pixels.
    """

    seed: int
    client: str
    degrees: float
    deviation: float

    @classmethod
    def of(cls, data: SkewSettings, *, seed: int, client: str, share: int, shares: int) -> Skew:
        """
        A client's part of ``data.rotation`` and ``data.noise``.

        Args:
            data: The config's ``[data]`` section.
            seed: The run's seed.
            client: Its id.
            share: Which share is this client's, from 0.
            shares: How many there are.

        Source:
            Li et al. 2022, arXiv 2102.02079 (NIID-Bench), section on feature distribution skew:
            noise from "Gau(sigma i / N)" for party i. The paper calls this the variance, the
            authors' code uses it as the standard deviation; so does this, as the published numbers
            are the code's, and it has the unit of the pixels.
        """
        part = (share + 1) / shares
        return cls(seed, client, part * data.rotation, part * data.noise)

    def apply(self, images: Tensor, samples: Sequence[int] | NDArray[np.int64]) -> Tensor:
        """
        The images as this client has them; turned first, as noise comes from the sensor.

        Args:
            images: (N, ..., H, W), float32; left as they are.
            samples: (N,) the number of each in the data set. It decides the noise, so that a
                sample's does not depend on which others the client has.

        Returns:
            The same shape. Not clipped: as in NIID-Bench, noise leaves the range of the pixels.
        """
        if self.degrees % 360:
            images = rotated(images, self.degrees)
        if self.deviation:
            images = images + self.deviation * self._noise(tuple(images.shape[1:]), samples)
        return images

    def _noise(self, shape: tuple[int, ...], samples: Sequence[int] | NDArray[np.int64]) -> Tensor:
        """(N, *shape) from N(0, 1), float32. By numpy: torch's generator depends on the device."""
        drawn = np.empty((len(samples), *shape), dtype=np.float32)
        for row, sample in zip(drawn, samples, strict=True):
            number = seed_for(self.seed, self.client, "noise", int(sample))
            np.random.Generator(np.random.PCG64(number)).standard_normal(out=row, dtype=np.float32)
        return torch.from_numpy(drawn)


def rotated(images: Tensor, degrees: float) -> Tensor:
    """
    Images turned about their centre, counter-clockwise; bilinear, black (0) where nothing was.

    Args:
        images: (N, ..., H, W), float32.
        degrees: The angle.
    """
    height, width = images.shape[-2:]
    planes = images.reshape(len(images), -1, height, width)
    grid = torch.from_numpy(_sources(height, width, degrees)).expand(len(planes), -1, -1, -1)
    return functional.grid_sample(planes, grid, align_corners=False).reshape(images.shape)


def _sources(height: int, width: int, degrees: float) -> NDArray[np.float32]:
    """
    Source of each pixel of a turned image: (H, W, 2) as x, y from -1 to 1.

    In pixels, not in the unit square, so that an image that is not square is turned and not sheared.
    """
    angle = math.radians(degrees)
    y, x = np.mgrid[0:height, 0:width] - np.array([height - 1, width - 1]).reshape(2, 1, 1) / 2
    from_x = math.cos(angle) * x - math.sin(angle) * y
    from_y = math.sin(angle) * x + math.cos(angle) * y
    return np.stack([2 * from_x / width, 2 * from_y / height], axis=-1).astype(np.float32)
