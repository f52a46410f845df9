"""Image files for tests."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def save_image(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (40, 24)) -> None:
    """Write an image of a colour with noise on it; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Seeded by the names below the test's folder: the same images wherever that is.
    seed = zlib.crc32("/".join(path.parts[-3:]).encode())
    noise = np.random.default_rng(seed).integers(0, 60, (*size[::-1], 3))
    Image.fromarray((noise + np.array(colour)).astype(np.uint8)).save(path)
