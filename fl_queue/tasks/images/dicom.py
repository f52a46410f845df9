"""
DICOM files, read by pydicom (extra ``medical``).

In the order of the standard: stored bits, modality (rescale or table), window or table of values of interest,
photometric interpretation; padding is black. The header is used for the pixels alone. Overlays and colour
profiles are left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fl_queue.common.extras import how_to_install
from fl_queue.errors import ConfigError
from fl_queue.tasks.images.frames import frame_of
from fl_queue.tasks.images.picture import Picture, in_channels, scaled
from fl_queue.tasks.images.settings import (
    FROM_FILE,
    NO_WINDOW,
    ImageSettings,
    refused,
    unreadable,
)

if TYPE_CHECKING:
    from pydicom import Dataset

SUFFIXES = frozenset({".dcm", ".dicom"})
_MONOCHROME = ("MONOCHROME1", "MONOCHROME2")
#: pydicom converts the others of YBR to RGB itself.
_COLOURS = (
    "RGB",
    "YBR_FULL",
    "YBR_FULL_422",
    "YBR_PARTIAL_422",
    "YBR_PARTIAL_420",
    "YBR_ICT",
    "YBR_RCT",
)
_PALETTE = "PALETTE COLOR"
_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
#: Of a group: rescale or table, and window.
_MEANINGS = ("PixelValueTransformationSequence", "FrameVOILUTSequence")


def read(path: Path, settings: ImageSettings) -> Picture:
    """
    Read one file.

    Raises:
        UnusableImage: It is damaged or no image, or no rule explains its values.
        ConfigError: pydicom is missing.
    """
    try:
        import pydicom
        from pydicom.errors import InvalidDicomError
    except ModuleNotFoundError as exc:
        raise ConfigError(
            "run.task", f"DICOM files need {exc.name}; {how_to_install('medical')}", public=True
        ) from exc
    try:
        dataset = pydicom.dcmread(path)
        if "PixelData" not in dataset:
            raise refused("is DICOM without pixels; remove it", "a DICOM file has no pixels")
        return _picture(dataset, settings)
    # All of these come from damaged files and from elements that are missing.
    except (
        InvalidDicomError,
        OSError,
        ValueError,
        AttributeError,
        KeyError,
        TypeError,
        IndexError,
        EOFError,
        NotImplementedError,
    ) as exc:
        raise unreadable(exc) from exc


def _picture(dataset: Dataset, settings: ImageSettings) -> Picture:
    _check_groups(dataset)
    kind = str(dataset.get("PhotometricInterpretation", "missing"))
    stored = _stored(dataset, settings)
    if kind in _MONOCHROME:
        return _grey(dataset, _whole_bits(dataset, stored), settings, kind == _MONOCHROME[0])
    if kind == _PALETTE:
        from pydicom.pixels.processing import apply_color_lut

        bits = int(dataset.RedPaletteColorLookupTableDescriptor[2])
        colours = apply_color_lut(stored, dataset)
        return _colour(colours, 8 * colours.itemsize if bits <= 8 else bits, settings)
    if kind in _COLOURS:
        return _colour(stored, int(dataset.BitsStored), settings)
    raise refused(
        f"has the photometric interpretation {kind}, which has no rule here; convert it to MONOCHROME2 or RGB",
        "a DICOM file has a photometric interpretation that has no rule here; convert it to MONOCHROME2 or RGB",
    )


def _check_groups(dataset: Dataset) -> None:
    """
    Refuse a file whose values have their meaning in its functional groups, such as an enhanced CT.

    Its rescale, window and photometric interpretation may differ by frame, and stand nowhere else.

    Raises:
        UnusableImage: There are such groups.

    Source: DICOM PS3.3, section C.7.6.16.
    """
    for name in _GROUPS:
        for group in dataset.get(name) or ():
            if any(one in group for one in _MEANINGS):
                raise refused(
                    "is an enhanced DICOM file, whose rescale or window is in groups of frames; convert it to "
                    "files of one frame",
                    "an enhanced DICOM file has its rescale or window in groups of frames; convert it to files of one frame",
                )


def _stored(dataset: Dataset, settings: ImageSettings) -> NDArray[Any]:
    """Stored values of one frame, colours as RGB: (height, width) or (height, width, 3)."""
    from pydicom.pixels.utils import pixel_array

    frame = frame_of(int(dataset.get("NumberOfFrames") or 1), settings.frame)
    try:
        return pixel_array(dataset, index=frame)
    except NotImplementedError as exc:
        syntax = dataset.file_meta.TransferSyntaxUID.name
        raise refused(
            f"is compressed as {syntax}, which pydicom does not decode; convert it",
            "a DICOM file is compressed in a way that pydicom does not decode; convert it",
        ) from exc
    except RuntimeError as exc:
        first, *plugins = str(exc).splitlines()
        if "missing dependencies" not in first:
            raise unreadable(exc) from exc
        # A line for each plugin, with the packages that it needs.
        syntax = dataset.file_meta.TransferSyntaxUID.name
        reason = (
            f"compressed as {syntax}, and no installed package decodes that; install the packages of one of "
            f"these lines: {'; '.join(line.strip() for line in plugins)}"
        )
        raise refused(f"is {reason}", f"a DICOM file is {reason}") from exc


def _whole_bits(dataset: Dataset, stored: NDArray[Any]) -> NDArray[np.int64]:
    """
    Values of ``BitsStored`` bits with their sign, whatever the bits beside them hold.

    Source: DICOM PS3.5, section 8.1.1.
    """
    bits = int(dataset.BitsStored)
    if int(dataset.get("HighBit", bits - 1)) != bits - 1:
        raise refused(
            f"has its highest bit at {dataset.HighBit} of {bits} stored ones, which DICOM has retired; convert it",
            "a DICOM file has its highest bit at a place that DICOM has retired; convert it",
        )
    values = stored.astype(np.int64) & ((1 << bits) - 1)
    if int(dataset.get("PixelRepresentation", 0)):
        values -= (values >> (bits - 1)) << bits
    return values


def _grey(
    dataset: Dataset, values: NDArray[np.int64], settings: ImageSettings, is_inverted: bool
) -> Picture:
    from pydicom.pixels.processing import apply_modality_lut

    numbers = np.asarray(apply_modality_lut(values, dataset), dtype=np.float64)
    unit, clipped = _windowed(dataset, values, numbers, settings)
    if is_inverted:
        unit = 1.0 - unit
    unit[_padding(dataset, values)] = 0.0
    return Picture(unit[None], clipped=clipped)


def _windowed(
    dataset: Dataset,
    values: NDArray[np.int64],
    numbers: NDArray[np.float64],
    settings: ImageSettings,
) -> tuple[NDArray[np.float64], int]:
    """Values of interest in [0, 1], and how many were clipped by ``task.range``."""
    if settings.window == NO_WINDOW:
        what = "DICOM without a window"
        unit, _ = scaled(numbers, settings, what)
        return unit, scaled(numbers[~_padding(dataset, values)], settings, what)[1]
    if settings.window != FROM_FILE:
        centre, width = (float(part) for part in settings.window.split(","))
        return window(numbers, centre, width, str(dataset.get("VOILUTFunction", "LINEAR"))), 0
    if tables := dataset.get("VOILUTSequence"):
        from pydicom.pixels.processing import apply_voi

        bits = int(tables[0].LUTDescriptor[2])
        looked_up = apply_voi(numbers.round().astype(np.int64), dataset, index=0)
        return np.asarray(looked_up, dtype=np.float64) / (2**bits - 1), 0
    if "WindowCenter" in dataset and "WindowWidth" in dataset:
        centre, width = _first(dataset.WindowCenter), _first(dataset.WindowWidth)
        return window(numbers, centre, width, str(dataset.get("VOILUTFunction", "LINEAR"))), 0
    return _whole_range(dataset, values, numbers), 0


def _whole_range(
    dataset: Dataset, values: NDArray[np.int64], numbers: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Eight bits or fewer without a window of their own: they are what a screen shows."""
    bits = int(dataset.BitsStored)
    if bits > 8 or values.min() < 0 or not np.array_equal(values, numbers):
        raise refused(
            'has no window; give task.window = "centre,width", or "none" with task.range',
            'a DICOM file has no window; give task.window = "centre,width", or "none" with task.range',
        )
    return np.asarray(values / (2**bits - 1), dtype=np.float64)


def window(
    numbers: NDArray[np.float64], centre: float, width: float, function: str
) -> NDArray[np.float64]:
    """
    Values in [0, 1] by a window.

    Args:
        numbers: After the modality's transformation.
        centre, width: In their unit; the width is 1 or more for ``LINEAR``, else more than 0.
        function: ``LINEAR``, ``LINEAR_EXACT`` or ``SIGMOID``.

    Raises:
        UnusableImage: Another function, or a width that cannot be used.

    Source: DICOM PS3.3, section C.11.2.1.2 and C.11.2.1.3.
    """
    if width < 1 if function == "LINEAR" else width <= 0:
        raise refused(
            f"has a window of the width {width:g}; give task.window",
            "a DICOM file has a window of an impossible width; give task.window",
        )
    if function == "LINEAR" and width == 1:
        return (numbers > centre - 0.5).astype(np.float64)
    if function == "LINEAR":
        return ((numbers - (centre - 0.5)) / (width - 1) + 0.5).clip(0.0, 1.0)
    if function == "LINEAR_EXACT":
        return ((numbers - centre) / width + 0.5).clip(0.0, 1.0)
    if function == "SIGMOID":
        powers = (-4.0 * (numbers - centre) / width).clip(-700.0, 700.0)
        return np.asarray(1.0 / (1.0 + np.exp(powers)), dtype=np.float64)
    raise refused(
        f"has the window function {function}, which has no rule here; give task.window",
        "a DICOM file has a window function that has no rule here; give task.window",
    )


def _padding(dataset: Dataset, values: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Pixels that are no part of the image. Source: DICOM PS3.3, section C.7.5.1.1.2."""
    low = dataset.get("PixelPaddingValue")
    if low is None:
        return np.zeros(values.shape, dtype=bool)
    high = dataset.get("PixelPaddingRangeLimit", low)
    return np.asarray((values >= min(low, high)) & (values <= max(low, high)), dtype=bool)


def _first(value: Any) -> float:
    return float(value if isinstance(value, (int, float, str)) else value[0])


def _colour(colours: NDArray[Any], bits: int, settings: ImageSettings) -> Picture:
    """Colours (height, width, 3) of so many bits."""
    if bits == 8 and colours.dtype == np.uint8:
        return Picture(in_channels(Image.fromarray(colours), settings.channels))
    unit = colours.astype(np.float64).transpose(2, 0, 1) / (2**bits - 1)
    return Picture(unit.clip(0.0, 1.0))
