"""New figures, and figures as files, by matplotlib (an extra)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fl_queue.common import files
from fl_queue.common.extras import how_to_install
from fl_queue.errors import ConfigError, DataError

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> Figure:
    """
    An empty figure.

    Args:
        width, height: Inches.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # an extra, and slow to import
    except ModuleNotFoundError as exc:
        reason = f"needs matplotlib; {how_to_install('plot')}"
        raise ConfigError("plot", reason) from exc
    # A Figure of its own draws with Agg; pyplot would look for a display and keep global state.
    return Figure(figsize=(width, height), layout="constrained")


def whole_numbers(axis: Axis) -> None:
    """Label an axis at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True))


def colours(count: int) -> Sequence[object]:
    """``count`` colours that differ: names of the usual ten, or of a scale when there are more."""
    from matplotlib import colormaps

    if count <= 10:
        return [f"C{number}" for number in range(count)]
    scale = colormaps["turbo"]
    return [scale(number / (count - 1)) for number in range(count)]


def save(figure: Figure, path: Path) -> None:
    """
    Write a figure; the suffix of the path is the format (PNG without one).

    Raises:
        ConfigError: matplotlib does not know the format.
        DataError: The file cannot be written.
    """
    kind = path.suffix.removeprefix(".").lower() or "png"
    known = figure.canvas.get_supported_filetypes()
    if kind not in known:
        formats = ", ".join(sorted(known))
        raise ConfigError("plot", f"{path}: no image format {kind}; use one of {formats}")
    # Drawn whole before the file is touched: a failure leaves an older plot as it was.
    image = io.BytesIO()
    figure.savefig(image, format=kind, dpi=150)
    if not path.parent.is_dir():
        reason = "cannot be written: No such file or directory; make its folder, or name another"
        raise DataError(str(path), reason)
    files.write(path, image.getvalue())
