"""One image file as the model has it, whatever its format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from fl_queue.tasks.images import dicom, nifti, pillow_files
from fl_queue.tasks.images.picture import Picture
from fl_queue.tasks.images.settings import ImageSettings, UnusableImage


def decode(path: Path, settings: ImageSettings) -> Tensor:
    """
    Pixels of a file: (channels, height, width), float32 in [0, 1]. docs/reference/tasks.md has the rules.

    Raises:
        DataError: It is damaged or no image, or no rule explains its values.
    """
    try:
        return read(path, settings).tensor(settings)
    except UnusableImage as exc:
        raise exc.of_file(str(path)) from exc


def read(path: Path, settings: ImageSettings) -> Picture:
    """
    A file's picture, before it is resized.

    Raises:
        UnusableImage: As of ``decode``.
    """
    return _READERS[suffix_of(path)](path, settings)


def suffix_of(path: Path) -> str:
    """The end of a file's name that decides its format; lower case, with both parts of ``.nii.gz``."""
    both = "".join(path.suffixes[-2:]).lower()
    return both if both in _READERS else path.suffix.lower()


_READERS: dict[str, Callable[[Path, ImageSettings], Picture]] = {
    suffix: kind.read for kind in (pillow_files, dicom, nifti) for suffix in kind.SUFFIXES
}
#: What names of images end in.
SUFFIXES = frozenset(_READERS)
