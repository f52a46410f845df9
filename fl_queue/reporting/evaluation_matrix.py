"""A matrix of models against the data of sites, from one report of an evaluation for each model."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import RenderableType

from fl_queue.common import escaping, files
from fl_queue.errors import ConfigError
from fl_queue.reporting import evaluation_views, plotting, rich_console
from fl_queue.reporting.evaluation_views import Part

#: Row of the version that was merged of all of them, and column of all sites together.
MERGED, ALL = "all sites' model", "all sites"
#: The figure that is shown unless another is asked for: the first of these that there is.
_FIGURES = ("auc", "accuracy", "r2", "rmse", "loss")
_NONE = "-"
_TEXTS = (".json", ".csv", ".md")
_IMAGES = (".png", ".svg", ".pdf")


def check_suffix(path: Path | None) -> None:
    """Raise ConfigError unless a matrix can be written in the format of this file."""
    if path is not None and path.suffix.lower() not in (*_TEXTS, *_IMAGES):
        known = ", ".join((*_TEXTS, *_IMAGES))
        raise ConfigError("--output", f"{path}: a matrix is written as one of {known}")


def matrix(
    run: str, number: int, reports: Mapping[str, Mapping[str, Any]], figure: str
) -> dict[str, Any]:
    """
    The matrix of a round.

    Args:
        run: Name of the run whose round it is.
        number: Of the round.
        reports: Model -> the report of its evaluation (``evaluation_report.read``).
        figure: That is shown, such as ``auc``; empty: the first of the usual ones.

    Returns:
        ``models``: model -> ``run`` of its evaluation, ``all`` and ``sites``: figures by name. A site that shows its
        figures only together with others is in no column.

    Raises:
        ConfigError: No report has the figure; lists those that there are.
    """
    there = sorted({name for found in reports.values() for name in found["metrics"]})
    chosen = figure or next((name for name in _FIGURES if name in there), there[0])
    if chosen not in there:
        raise ConfigError("--figure", f"{chosen!r} is none of {', '.join(there)}")
    return {
        "run": run,
        "round": number,
        "figure": chosen,
        "sites": sorted({site for found in reports.values() for site in found["per_site"]}),
        "hidden_sites": max(found["hidden_sites"] for found in reports.values()),
        "models": {
            model: {
                "run": found["run"],
                "all": _values(found["metrics"]),
                "sites": {site: _values(one) for site, one in found["per_site"].items()},
            }
            for model, found in reports.items()
        },
    }


def _values(figures: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    return {name: one["value"] for name, one in figures.items()}


def _part(found: Mapping[str, Any]) -> Part:
    sites, figure = found["sites"], found["figure"]
    rows = [
        (
            model,
            *(_cell(one["sites"].get(site, {}).get(figure)) for site in sites),
            _cell(one["all"].get(figure)),
        )
        for model, one in found["models"].items()
    ]
    return Part(figure, ("model of", *(f"on {site}" for site in sites), f"on {ALL}"), rows)


def _notes(found: Mapping[str, Any]) -> Iterator[str]:
    if hidden := found["hidden_sites"]:
        yield f"{hidden} of the sites show their figures only together with those of others, or did not answer alone"


def _headline(found: Mapping[str, Any]) -> str:
    return f"{found['run']}, round {found['round']}: {found['figure']} of each model on the data of each site"


def renderables(found: Mapping[str, Any]) -> Iterator[RenderableType]:
    """The matrix for a terminal. Args: ``found``: of ``matrix``."""
    yield rich_console.text(_headline(found))
    part = _part(found)
    table = rich_console.table(*part.columns)
    for row in part.rows:
        table.add_row(*row)
    yield table
    for line in _notes(found):
        yield rich_console.text(line)


def write(found: Mapping[str, Any], path: Path) -> None:
    """
    Write the matrix in the format of the file's suffix.

    Raises:
        ConfigError: No format has it; matplotlib is not installed.
        DataError: The file cannot be written.
    """
    check_suffix(path)
    suffix = path.suffix.lower()
    if suffix in _IMAGES:
        _plot(found, path)
        return
    made = {
        ".json": lambda: json.dumps(found, indent=2, sort_keys=True) + "\n",
        ".csv": lambda: _table(found),
        ".md": lambda: evaluation_views.markdown_of(
            _headline(found), [_part(found)], [*_notes(found)]
        ),
    }[suffix]()
    files.write(path, made.encode())


def _table(found: Mapping[str, Any]) -> str:
    """A line for each model, site and figure; an empty site for all together."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("model", "site", "figure", "value"))
    for model, one in found["models"].items():
        for site, figures in (("", one["all"]), *one["sites"].items()):
            writer.writerows((model, site, name, value) for name, value in figures.items())
    return out.getvalue()


def _plot(found: Mapping[str, Any], path: Path) -> None:
    """A heat map: a row for each model, a column for each site and one for all."""
    columns = [*found["sites"], ALL]
    values = np.array([_row(one, found) for one in found["models"].values()])
    figure = plotting.new_figure(2.5 + len(columns), 1.5 + 0.6 * len(values))
    axes = figure.add_subplot(1, 1, 1)
    axes.imshow(values, cmap="Blues", aspect="auto")
    middle = (np.nanmin(values) + np.nanmax(values)) / 2
    for (row, column), value in np.ndenumerate(values):
        colour = "white" if value > middle else "black"
        axes.text(column, row, _cell(float(value)), ha="center", va="center", color=colour)
    axes.set_xticks(range(len(columns)), map(escaping.plotted, columns), rotation=30, ha="right")
    axes.set_yticks(range(len(values)), map(escaping.plotted, found["models"]))
    axes.set(xlabel="data of", ylabel="model of", title=escaping.plotted(_headline(found)))
    plotting.save(figure, path)


def _row(one: Mapping[str, Any], found: Mapping[str, Any]) -> Sequence[float]:
    figure = found["figure"]
    given = [*(one["sites"].get(site, {}) for site in found["sites"]), one["all"]]
    return [values.get(figure, np.nan) for values in given]


def _cell(value: float | None) -> str:
    return _NONE if value is None or np.isnan(value) else f"{value:.4g}"
