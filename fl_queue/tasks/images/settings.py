"""``ImageSettings``: how image files become pixels, as ``[task]`` has it. And the error of a file that has none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fl_queue.errors import DataError

#: Values of ``task.window`` besides "centre,width".
FROM_FILE, NO_WINDOW = "file", "none"
#: Planes of a volume whose axes are right, anterior, superior -> the axis across each.
PLANES = {"sagittal": 0, "coronal": 1, "axial": 2}


@dataclass(frozen=True)
class ImageSettings:
    """
    Settings by which a file is decoded.

    Args:
        channels: 1 grey, 3 colour.
        side: Side of the square that images are resized to, pixels; 0: left as they are.
        bits: Bits of grey images that are stored in 16; 0: as the file has it.
        range: Values of black and white, of files without a scale of their own; empty: none is given.
        background: Behind transparent pixels: grey, or red, green, blue, each 0 to 255.
        frame: Frame of a file that has several, from 0; -1: such a file is refused.
        window: Of DICOM: ``file``, ``none``, or centre and width with a comma between them.
        slice: Of a volume: plane and number, such as ``axial:40``; empty: it must have one slice alone.
    """

    channels: int = 3
    side: int = 0
    bits: int = 0
    range: tuple[float, ...] = ()
    background: tuple[int, ...] = (0,)
    frame: int = -1
    window: str = FROM_FILE
    slice: str = ""

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> ImageSettings:
        """The settings in a ``[task]`` table, which is complete."""
        return cls(
            channels=options["channels"],
            side=options["image_size"],
            bits=options["bits"],
            range=options["range"],
            background=options["background"],
            frame=options["frame"],
            window=options["window"],
            slice=options["slice"],
        )


class UnusableImage(Exception):
    """
    A file without pixels for the model.

    Args:
        kind: ``unreadable``: damaged, or no image; ``refused``: no rule explains its values.
        reason: What is wrong with it; may quote the file.
        public: The same without anything of the file.
    """

    def __init__(self, kind: Literal["unreadable", "refused"], reason: str, public: str) -> None:
        super().__init__(reason)
        self.kind, self.reason, self.public = kind, reason, public

    def of_file(self, path: str) -> DataError:
        """The same as the error of a site's data."""
        return DataError(path, self.reason, public=self.public)


def refused(reason: str, public: str) -> UnusableImage:
    """A file whose values no rule explains."""
    return UnusableImage("refused", reason, public)


def unreadable(exc: Exception) -> UnusableImage:
    """A file that a decoder gave up on."""
    return UnusableImage(
        "unreadable",
        f"is not a readable image ({exc}); repair or remove it",
        "an image is not readable; repair or remove it",
    )
