"""Survival curves of an analysis' result: as tables of text, and as a plot."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import RenderableType

from fl_queue.analyses import survival_curves
from fl_queue.common import escaping
from fl_queue.reporting import p_values, plotting, rich_console

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Times of a curve that a table shows.
_SHOWN = 12

Found = Mapping[str, Any]


def completed(found: Found, level: float = p_values.LEVEL) -> dict[str, Any]:
    """A result with the p-values of its log-rank tests, and with intervals of a level."""
    made = {}
    quantile = statistics.NormalDist().inv_cdf(0.5 + level / 2)
    for name, curve in found.get("survival", {}).items():
        curve = {**curve, "level": level}
        if level != p_values.LEVEL:
            points = np.array(curve["times"], np.float64)
            groups = [
                survival_curves.with_quantile(points, group, quantile) if group["rows"] else group
                for group in curve["groups"]
            ]
            curve["groups"] = groups
        if (test := curve["log_rank"]) is not None:
            p = p_values.chi_square(test["chi_square"], test["degrees_of_freedom"])
            curve = {**curve, "log_rank": {**test, "p": p}}
        made[name] = curve
    return {**found, **({"survival": made} if made else {})}


def renderables(found: Mapping[str, Found]) -> Iterator[RenderableType]:
    """The curves of a result as tables. Args: ``found``: its ``survival``."""
    for name, curve in found.items():
        groups = [group for group in curve["groups"] if group["rows"] or group["withheld"]]
        yield _summary(name, groups, f"{100 * curve['level']:g} %")
        yield _curves(curve["times"], [group for group in groups if group["rows"]])
        if (test := curve["log_rank"]) is not None:
            yield rich_console.text(
                f"log-rank chi-square {test['chi_square']:.6g}, degrees of freedom {test['degrees_of_freedom']}, "
                f"p {p_values.text(test.get('p'))}"
            )


def is_withheld(found: Mapping[str, Found]) -> bool:
    """Whether a site has withheld a group of a curve."""
    return any(group["withheld"] for curve in found.values() for group in curve["groups"])


def _summary(name: str, groups: Sequence[Found], level: str) -> RenderableType:
    table = rich_console.table(f"survival {name}", "rows", "events", "median", level)
    for group in groups:
        mark = "*" if group["withheld"] else ""
        if not group["rows"]:
            table.add_row(f"{group['level']}{mark}", "-", "-", "-", "-")
            continue
        table.add_row(
            f"{group['level']}{mark}",
            f"{group['rows']:,}",
            f"{sum(group['events']):,}",
            _time(group["median"]),
            "-" if group["median_low"] is None else _bracket(group),
        )
    return table


def _time(value: float | None) -> str:
    """A time; "-": the curve stays above a half."""
    return "-" if value is None else f"{value:g}"


def _bracket(group: Found) -> str:
    return f"{_time(group['median_low'])} to {_time(group['median_high'])}"


def _curves(times: Sequence[float], groups: Sequence[Found]) -> RenderableType:
    headers = (header for group in groups for header in ("at risk", f"S, {group['level']}"))
    table = rich_console.table("time", *headers)
    for place in _spread(len(times)):
        cells = []
        for group in groups:
            low, high = group["low"][place], group["high"][place]
            shown = f"{group['survival'][place]:.4f} [{low:.4f}, {high:.4f}]"
            cells += [f"{group['at_risk'][place]:,}", shown]
        table.add_row(f"{times[place]:g}", *cells)
    return table


def _spread(count: int) -> list[int]:
    """Places of a few times, the first and the last one among them."""
    steps = min(count, _SHOWN) - 1
    return [0] if not steps else [round(step * (count - 1) / steps) for step in range(steps + 1)]


def draw(axes: Axes, name: str, curve: Found) -> None:
    """The curves of one question, with their intervals."""
    groups = [group for group in curve["groups"] if group["rows"]]
    times = curve["times"]
    starts_late = times[0] > 0
    ends = [0.0, *times] if starts_late else list(times)
    for colour, group in zip(plotting.colours(len(groups)), groups, strict=True):
        steps = [
            [1.0, *group[key]] if starts_late else group[key] for key in ("survival", "low", "high")
        ]
        label = escaping.plotted(f"{group['level']} ({group['rows']:,})")
        axes.step(ends, steps[0], where="post", color=colour, label=label)
        axes.fill_between(ends, steps[1], steps[2], step="post", color=colour, alpha=0.2, lw=0)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel(escaping.plotted(name.split()[0]))
    axes.set_ylabel("survival")
    title = name
    if curve["log_rank"] is not None:
        title += f": log-rank p {p_values.text(curve['log_rank'].get('p'))}"
    axes.set_title(escaping.plotted(title))
    axes.legend(frameon=False)
