"""
NIfTI files (.nii, .nii.gz), read by nibabel (extra ``medical``): one slice of a volume.

Values are those after the file's slope and intercept, axes are turned to right, anterior, superior (RAS). A slice is
shown with the patient's left at the left; superior, or anterior in an axial slice, is above.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_queue.common.extras import how_to_install
from fl_queue.errors import ConfigError
from fl_queue.tasks.images.frames import frame_of
from fl_queue.tasks.images.picture import Picture, scaled
from fl_queue.tasks.images.settings import PLANES, ImageSettings, refused, unreadable

SUFFIXES = frozenset({".nii", ".nii.gz"})


def read(path: Path, settings: ImageSettings) -> Picture:
    """
    Read one slice.

    Raises:
        UnusableImage: It is damaged or no volume, or the config names no slice or range.
        ConfigError: nibabel is missing.
    """
    try:
        import nibabel
        from nibabel.filebasedimages import ImageFileError
        from nibabel.spatialimages import HeaderDataError
    except ModuleNotFoundError as exc:
        raise ConfigError(
            "run.task", f"NIfTI files need {exc.name}; {how_to_install('medical')}", public=True
        ) from exc
    try:
        volume = _canonical(nibabel.load(path))
        values = _plane(volume, settings)
    except (ImageFileError, HeaderDataError, OSError, EOFError, ValueError, zlib.error) as exc:
        raise unreadable(exc) from exc
    unit, clipped = scaled(values, settings, "NIfTI")
    return Picture(unit[None], clipped=clipped)


def _canonical(volume: Any) -> Any:
    """A volume in RAS; of two dimensions, one with a single slice, as only axes of space can be turned."""
    import nibabel

    if len(volume.shape) == 2:
        slab = np.asarray(volume.dataobj)[..., np.newaxis]
        volume = type(volume)(slab, volume.affine, volume.header)
    return nibabel.as_closest_canonical(volume)  # type: ignore[no-untyped-call]


def _plane(volume: Any, settings: ImageSettings) -> NDArray[np.float64]:
    """One slice, (height, width). Only that part of an uncompressed file is read."""
    shape = volume.shape
    if volume.get_data_dtype().names:
        raise refused("is NIfTI of colours; convert it", "a NIfTI file holds colours; convert it")
    if not 2 <= len(shape) <= 4:
        raise refused(
            f"is NIfTI of {len(shape)} dimensions; write a volume of 3",
            "a NIfTI file is no volume of 3 dimensions; write one",
        )
    frame = frame_of(shape[3] if len(shape) == 4 else 1, settings.frame)
    sizes = (*shape, 1)[:3]
    axis, number = _place(sizes, settings.slice)
    index: list[Any] = [slice(None)] * len(shape)
    if axis < len(shape):
        index[axis] = slice(number, number + 1)
    if len(shape) == 4:
        index[3] = frame
    block = np.asarray(volume.dataobj[tuple(index)], dtype=np.float64)
    plane = block.reshape([size for at, size in enumerate(sizes) if at != axis])
    return np.rot90(plane)


def _place(sizes: tuple[int, ...], wanted: str) -> tuple[int, int]:
    """Axis and number of the slice. Args: ``sizes``: of the volume; ``wanted``: ``task.slice``."""
    if not wanted:
        if sizes[2] != 1:
            raise refused(
                'is a volume, and a slice of it is needed; give task.slice, such as "axial:middle"',
                'a NIfTI file is a volume; give task.slice, such as "axial:middle"',
            )
        return 2, 0
    plane, _, which = wanted.partition(":")
    axis = PLANES[plane]
    number = sizes[axis] // 2 if which == "middle" else int(which)
    if number >= sizes[axis]:
        raise refused(
            f"has {sizes[axis]} {plane} slices, so there is none with the number {number} of task.slice",
            "a NIfTI file has no slice with the number of task.slice; they are counted from 0",
        )
    return axis, number
