"""Image files for tests."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fl_queue.config.run_config import RunConfig
from fl_queue.tasks.context import ClientContext
from fl_queue.tasks.image_folder import ImageFolderTask
from fl_queue.tasks.loading import load_task


def save_image(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (40, 24)) -> None:
    """Write an image of a colour with noise on it; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Seeded by the names below the test's folder: the same images wherever that is.
    seed = zlib.crc32("/".join(path.parts[-3:]).encode())
    noise = np.random.default_rng(seed).integers(0, 60, (*size[::-1], 3))
    Image.fromarray((noise + np.array(colour)).astype(np.uint8)).save(path)


def image_task(
    classes: str, batch_size: int, folder: Path, **options: Any
) -> tuple[ImageFolderTask, ClientContext]:
    """The task of a folder of images, and the context of its only client. Args: ``options``: of ``[task]``."""
    config = RunConfig.from_dict(
        {
            "run": {"task": "image-folder"},
            "data": {"partition": "site", "validation_fraction": 0.25},
            "train": {"batch_size": batch_size},
            "task": {"image_size": 32, "classes": classes} | options,
        }
    )
    task = load_task("image-folder", config, data_dir=str(folder))
    assert isinstance(task, ImageFolderTask)
    return task, ClientContext.of(
        config, client="a", run="run", round_number=1, data_dir=str(folder)
    )
