"""
Files that Pillow reads (PNG, JPEG, TIFF, GIF, WebP, BMP, PGM): the scale of each of their modes.

Pillow's conversions are right for 8 bits only: of more it keeps the lowest byte or cuts at 255. So those
are scaled here. Checked with Pillow 10 to 13.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fl_queue.tasks.images.frames import frame_of
from fl_queue.tasks.images.picture import Picture, in_channels, scaled
from fl_queue.tasks.images.settings import ImageSettings, refused, unreadable

SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
#: Modes of 8 bits, or of fewer that Pillow has scaled to 8.
_EIGHT = frozenset(
    "1 L LA La P PA RGB RGBA RGBa RGBX YCbCr LAB HSV CMYK".split()  # noqa: SIM905  # A word for each is quicker read.
)
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262  # Tags of TIFF.
_WHITE_IS_ZERO = 0
_DEEPEST = 16
#: Pillow's names for alpha that is multiplied into the colours -> the same with colours as they were.
_MULTIPLIED = {"La": "LA", "RGBa": "RGBA"}


class _Source(NamedTuple):
    """
    How a file stores its pixels; Pillow forgets it on loading them.

    Args:
        raw: Pillow's name of the layout in the file, such as ``I;16B``; empty where it has none.
        form: Pillow's name of the format.
        bits: Of a sample, as a TIFF has it; 0: unknown.
        is_inverted: Whether 0 is white.
    """

    raw: str
    form: str
    bits: int = 0
    is_inverted: bool = False


def read(path: Path, settings: ImageSettings) -> Picture:
    """
    Read one file.

    Raises:
        UnusableImage: It is damaged or no image, or no rule explains its values.
    """
    try:
        with Image.open(path) as image:
            _choose_frame(image, settings.frame)
            source = _source(image)
            upright = ImageOps.exif_transpose(image)
            return _scaled(upright, source, settings)
    # Pillow's decoders raise all of these on damaged files.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as exc:
        raise unreadable(exc) from exc


def _choose_frame(image: Image.Image, frame: int) -> None:
    """Go to the wanted frame; a file of several, of which none is wanted, is refused."""
    # A JPEG with a preview or a second view (MPO) begins with the main picture.
    if image.format == "MPO":
        return
    number = frame_of(getattr(image, "n_frames", 1), frame)
    if number:
        image.seek(number)


def _source(image: Image.Image) -> _Source:
    tile: Any = getattr(image, "tile", None)  # Of a file; Pillow declares it for that class alone.
    raw: Any = tile[0][3] if tile else ""
    raw = raw[0] if isinstance(raw, tuple) and raw else raw
    tags: Any = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS_PER_SAMPLE, (0,))
    return _Source(
        raw if isinstance(raw, str) else "",
        image.format or "",
        int(bits[0] if isinstance(bits, tuple) else bits),
        tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO,
    )


def _scaled(image: Image.Image, source: _Source, settings: ImageSettings) -> Picture:
    if image.mode in _EIGHT:
        flat = in_channels(opaque(image, settings.background), settings.channels)
        return Picture(flat, is_reduced=";16" in source.raw)
    if image.mode.startswith("I;16"):
        return Picture(_sixteen(image, source, settings))
    if image.mode == "I" and (source.form == "PPM" or source.raw == "I;16B"):
        # Pillow scales a PGM by its largest value; before Pillow 11.3 a PNG of 16 bits is of this mode, too.
        return Picture(_sixteen(image, source, settings))
    if image.mode == "F" and not settings.range:
        return Picture(_unit(image, source))
    if image.mode in ("I", "F"):
        what = "of 32-bit whole numbers" if image.mode == "I" else "of floating-point numbers"
        unit, clipped = scaled(np.asarray(image), settings, what)
        return Picture(_upright_scale(unit, source)[None], clipped=clipped)
    raise refused(
        f"has pixels of a kind that has no rule here (mode {image.mode}); convert it to grey or RGB",
        "an image has pixels of a kind that has no rule here; convert it to grey or RGB",
    )


def opaque(image: Image.Image, background: tuple[int, ...] = (0,)) -> Image.Image:
    """Lay an image of 8 bits over a background where it is transparent: hidden pixels are not data."""
    image = image.convert(_MULTIPLIED.get(image.mode, image.mode))
    if image.mode not in ("RGBA", "LA", "PA") and "transparency" not in image.info:
        return image
    layered = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (*_rgb(background), 255)), layered)


def _rgb(background: tuple[int, ...]) -> tuple[int, int, int]:
    red, green, blue = background * 3 if len(background) == 1 else background
    return red, green, blue


def _sixteen(image: Image.Image, source: _Source, settings: ImageSettings) -> NDArray[np.float64]:
    """Grey of up to 16 bits: (1 or 3, height, width) in [0, 1]."""
    values = np.asarray(image).astype(np.int64)
    is_scaled = source.form == "PPM"
    bits = _DEEPEST if is_scaled else settings.bits or source.bits or _DEEPEST
    white = 2**bits - 1
    if values.min() < 0 or values.max() > white:
        named = "task.bits" if settings.bits else "its file"
        raise refused(
            f"has values up to {values.max()}, more than the {white} of {bits} bits ({named}); correct task.bits",
            f"an image has values over those of {bits} bits; correct task.bits",
        )
    unit = _upright_scale(values / white, source)[None]
    hidden = image.info.get("transparency")
    if not isinstance(hidden, int):
        return unit
    behind = np.array(_rgb(settings.background), dtype=np.float64)[:, None, None] / 255
    shown = np.where(values[None] == hidden, behind, unit)
    return shown if len(settings.background) == 3 else shown[:1]


def _upright_scale(unit: NDArray[np.float64], source: _Source) -> NDArray[np.float64]:
    # Pillow inverts a TIFF whose 0 is white if it has 8 bits, and no other.
    return 1.0 - unit if source.is_inverted else unit


def _unit(image: Image.Image, source: _Source) -> NDArray[np.float64]:
    """Floating-point numbers that are in [0, 1] already: (1, height, width)."""
    numbers = np.asarray(image).astype(np.float64)
    if not ((numbers >= 0) & (numbers <= 1)).all():
        raise refused(
            "has floating-point numbers that are not in 0 to 1; give task.range = [black, white]",
            "an image has floating-point numbers that are not in 0 to 1; give task.range = [black, white]",
        )
    return _upright_scale(numbers, source)[None]
