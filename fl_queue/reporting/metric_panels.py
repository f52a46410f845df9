"""Curves of one metric in a panel of a figure. No Redis here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from fl_queue.common import escaping
from fl_queue.reporting import plotting
from fl_queue.reporting.baselines import Baseline

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Version -> its finished metrics.
Curve = Mapping[int, Mapping[str, float]]


def draw_curves(axes: Axes, curves: Sequence[tuple[str, Curve, str, str]]) -> None:
    """Draw curves of (label, values, metric, colour); those without the metric are left out."""
    for label, curve, metric, colour in curves:
        points = sorted((at, found[metric]) for at, found in curve.items() if metric in found)
        if points:
            axes.plot(
                *zip(*points, strict=True),
                label=escaping.plotted(label),
                color=colour,
                marker="o",
                ms=3.5,
            )


def draw_beside(axes: Axes, name: str, baselines: Sequence[Baseline], held_out: bool) -> None:
    """A curve where a baseline has one, else the mean of its models and their range."""
    for number, baseline in enumerate(baselines, 4):
        label, colour = escaping.plotted(f"{baseline.kind} {baseline.name}"), f"C{number}"
        spread = baseline.summary(name, held_out)
        if spread is None:
            continue
        if not held_out and (curve := baseline.curve(name)):
            axes.plot(*zip(*curve, strict=True), label=label, color=colour, ls="--", marker=".")
            continue
        axes.axhline(spread.mean, label=label, color=colour, ls="--")
        axes.axhspan(spread.least, spread.most, color=colour, alpha=0.1, linewidth=0)


def finish_panel(axes: Axes, name: str) -> None:
    """Title, axis labels, grid and legend of a panel. Args: ``name``: the metric."""
    shown_name = escaping.plotted(name.capitalize())
    axes.set_title(f"{shown_name} by model version")
    axes.set_ylabel(shown_name)
    plotting.whole_numbers(axes.xaxis)
    axes.grid(alpha=0.3)
    axes.legend(loc="best")
