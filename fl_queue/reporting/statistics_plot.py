"""The result of the task ``statistics`` as a figure: quantiles, counts of levels, means by level, tables, curves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fl_queue.common import escaping
from fl_queue.errors import ConfigError
from fl_queue.reporting import plotting, survival_tables

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_Found = Mapping[str, Any]
_Draw = Callable[["Axes"], None]
#: Inches of a figure, of one part, and of its rim.
_WIDTH, _PART, _RIM = 7.0, 3.6, 1.0


def plot(path: Path, found: _Found) -> None:
    """
    Draw the parts of a result one below the other; what sites withhold is left out.

    Args:
        path: Its suffix is the format.
        found: Of ``analysis_result.completed``.

    Raises:
        ConfigError: There is nothing to draw; matplotlib is not installed, or does not know the format.
        DataError: The file cannot be written.
    """
    drawn = list(_parts(found))
    if not drawn:
        raise ConfigError(
            "--output",
            "draws quantiles, levels, groups, tables and survival curves, and none was asked for; write a .json",
        )
    figure = plotting.new_figure(_WIDTH, _RIM + _PART * len(drawn))
    for axes, draw in zip(figure.subplots(len(drawn), 1, squeeze=False)[:, 0], drawn, strict=True):
        draw(axes)
    plotting.save(figure, path)


def _parts(found: _Found) -> Iterator[_Draw]:
    for name, one in found.get("numbers", {}).items():
        if any(quantile["value"] is not None for quantile in one.get("quantiles", ())):
            yield partial(_quantiles, name=name, found=one)
    for name, levels in found.get("levels", {}).items():
        yield partial(_levels, name=name, found=levels)
    for name, groups in found.get("groups", {}).items():
        yield partial(_groups, name=name, found=groups)
    for name, table in found.get("tables", {}).items():
        yield partial(_table, name=name, found=table)
    for name, curve in found.get("survival", {}).items():
        yield partial(survival_tables.draw, name=name, curve=curve)


def _quantiles(axes: Axes, name: str, found: _Found) -> None:
    """Values by share of the rows, each with its bracket."""
    shown = [one for one in found["quantiles"] if one["value"] is not None]
    shares = [100 * one["quantile"] for one in shown]
    values = np.array([one["value"] for one in shown])
    low, high = (np.array([one[key] for one in shown]) for key in ("low", "high"))
    below, above = np.maximum(values - low, 0), np.maximum(high - values, 0)
    axes.errorbar(shares, values, yerr=[below, above], marker="o", capsize=3)
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of the rows")
    axes.set_ylabel(escaping.plotted(name))
    axes.set_title(escaping.plotted(f"quantiles of {name}, {found['rows']:,} rows"))


def _levels(axes: Axes, name: str, found: list[_Found]) -> None:
    """Rows of each level."""
    shown = [one for one in found if one["rows"]]
    bars = axes.barh([_label(one) for one in shown], [one["rows"] for one in shown])
    axes.bar_label(bars, fmt="{:,.0f}", padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("rows")
    axes.set_title(escaping.plotted(f"levels of {name}"))


def _groups(axes: Axes, name: str, found: list[_Found]) -> None:
    """The mean of each level, and one standard deviation to both sides."""
    shown = [one for one in found if one["mean"] is not None]
    spread = [one["sd"] or 0.0 for one in shown]
    places = range(len(shown))
    axes.errorbar([one["mean"] for one in shown], places, xerr=spread, fmt="o", capsize=3)
    axes.set_yticks(places, [f"{_label(one)} ({one['rows']:,})" for one in shown])
    axes.invert_yaxis()
    axes.set_xlabel("mean, and one standard deviation")
    axes.set_title(escaping.plotted(name))


def _table(axes: Axes, name: str, found: _Found) -> None:
    """Counts of two categories, darker where there are more."""
    counts, hidden = np.array(found["counts"]), np.array(found["withheld"])
    rows, columns = (counts + hidden).any(axis=1), (counts + hidden).any(axis=0)
    counts, hidden = counts[rows][:, columns], hidden[rows][:, columns]
    axes.imshow(counts, cmap="Blues", aspect="auto")
    for (row, column), count in np.ndenumerate(counts):
        text = f"{count or '-'}*" if hidden[row, column] else f"{count:,}"
        is_dark = count > counts.max() / 2
        axes.text(
            column, row, text, ha="center", va="center", color="white" if is_dark else "black"
        )
    names = zip((found["rows"], found["columns"]), (rows, columns), strict=True)
    left, right = (
        [
            escaping.plotted(level)
            for level, is_there in zip(all_names, there, strict=True)
            if is_there
        ]
        for all_names, there in names
    )
    axes.set_yticks(range(len(left)), left)
    axes.set_xticks(range(len(right)), right, rotation=30, ha="right")
    axes.set_title(escaping.plotted(name))


def _label(one: _Found) -> str:
    return escaping.plotted(f"{one['level']}{'*' if one['withheld'] else ''}")
