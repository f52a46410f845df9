"""The report of an evaluation as text, Markdown, HTML, CSV and as a plot."""

from __future__ import annotations

import csv
import html
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from fl_queue.common import files
from fl_queue.errors import ConfigError
from fl_queue.reporting import plotting, rich_console

_NONE = "-"
_TITLES = {
    "auc": "AUC",
    "brier": "Brier score",
    "f1": "F1",
    "mae": "mean absolute error",
    "r2": "R2",
    "rmse": "root mean squared error",
    "log_loss": "log loss",
}
#: Figures of a site's line, those that there are; the rest is in the JSON.
_OF_A_SITE = (
    "rows", "events", "auc", "accuracy", "sensitivity", "specificity", "brier", "calibration_slope",
    "f1", "rmse", "mae", "r2", "loss",
)  # fmt: skip
_COLUMNS_OF_A_SITE = 7
_IMAGES = (".png", ".svg", ".pdf")
_TEXTS = (".json", ".csv", ".md", ".html")


@dataclass(frozen=True)
class Part:
    """
    A table of the report.

    Args:
        title: In words.
        columns: Its head.
        rows: Cells, as text.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def check_suffix(path: Path | None) -> None:
    """Raise ConfigError unless a report can be written in the format of this file."""
    if path is not None and path.suffix.lower() not in (*_TEXTS, *_IMAGES):
        known = ", ".join((*_TEXTS, *_IMAGES))
        raise ConfigError("--output", f"{path}: the suffix is none of {known}")


def headline(found: Mapping[str, Any]) -> str:
    """Model, rows and sites in a line."""
    which = "held-out rows" if found["evaluated"] == "held_out" else "rows"
    events = found["metrics"].get("events")
    of_these = f" ({events['value']:,} events)" if events else ""
    sites = f"{found['sites']} site{'' if found['sites'] == 1 else 's'}"
    model = found["model"].get("file", "") or found["run"]
    return f"{model}: {found['rows']:,} {which}{of_these} at {sites}"


def parts(found: Mapping[str, Any]) -> Iterator[Part]:
    """The tables of a report."""
    columns = ("", "value", "95 % interval", "bins", "sites", "rows")
    rows = [
        (
            _title(name), _number(one["value"]), _interval(one),
            f"+-{_number(one['bound'])}" if "bound" in one else _NONE, f"{one['sites']}", f"{one['rows']:,}",
        )
        for name, one in found["metrics"].items()
        if name not in ("rows", "events")
    ]  # fmt: skip
    yield Part("All sites together", columns, rows)
    if found["per_site"]:
        yield _sites(found["per_site"])
    if found.get("confusion"):
        yield _confusion(found["confusion"], found.get("withheld"))
    if found.get("calibration"):
        yield _calibration(found["calibration"])


def notes(found: Mapping[str, Any]) -> Iterator[str]:
    """What a reader has to know besides."""
    if any("bound" in one for one in found["metrics"].values()):
        yield "bins: the figure of the single rows differs by this at most, as rows are counted by bins of their log-odds"
    if hidden := found["hidden_sites"]:
        shows = "site shows its" if hidden == 1 else "sites show their"
        alone = ", so no site's are shown" if hidden == 1 else ""
        yield f"{hidden} {shows} figures only together with those of others{alone}"
    for who in found["missing"]:
        if who not in found["refused"]:
            yield f"{who}: no answer; it is not in these figures"
    for key in ("refused", "left_out"):
        for who, why in found[key].items():
            yield f"{who}: {why}"


def renderables(found: Mapping[str, Any]) -> Iterator[RenderableType]:
    """The report for a terminal."""
    yield rich_console.text(headline(found))
    for part in parts(found):
        yield rich_console.text(part.title)
        table = rich_console.table(*part.columns)
        for row in part.rows:
            table.add_row(*row)
        yield table
    for line in notes(found):
        yield rich_console.text(line)


def markdown(found: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    return markdown_of(headline(found), parts(found), notes(found))


def markdown_of(title: str, shown: Iterable[Part], remarks: Iterable[str]) -> str:
    """Tables under a title, and remarks below them, as Markdown."""
    lines = [f"# {_plain(title)}", ""]
    for part in shown:
        lines += [f"## {part.title}", "", _line(part.columns), _line(["---"] * len(part.columns))]
        lines += [_line(row) for row in part.rows]
        lines.append("")
    lines += [f"- {_plain(note)}" for note in remarks]
    return "\n".join(lines) + "\n"


def page(found: Mapping[str, Any]) -> str:
    """The report as a page of HTML without scripts."""
    body = [f"<h1>{html.escape(headline(found))}</h1>"]
    for part in parts(found):
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in part.columns)
        rows = "".join(
            f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>"
            for row in part.rows
        )
        body.append(f"<h2>{html.escape(part.title)}</h2><table><tr>{head}</tr>{rows}</table>")
    body += [f"<p>{html.escape(note)}</p>" for note in notes(found)]
    style = "body{font-family:sans-serif}td,th{padding:.2em .8em;text-align:right}td:first-child{text-align:left}"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(found["run"])}</title>'
        f"<style>{style}</style></head><body>{''.join(body)}</body></html>\n"
    )


def table(found: Mapping[str, Any]) -> str:
    """The figures as CSV: a line for each figure and site, an empty site for all together."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("site", "figure", "value", "low", "high", "bound", "sites", "rows"))
    for site, given in (("", found["metrics"]), *found["per_site"].items()):
        rows = given.get("rows", {}).get("value", "")
        for name, one in given.items():
            beside = (one.get(key, "") for key in ("low", "high", "bound"))
            of = (one["sites"], one["rows"]) if not site else (1, rows)
            writer.writerow((site, name, one["value"], *beside, *of))
    return out.getvalue()


def write(found: Mapping[str, Any], path: Path) -> None:
    """
    Write the report in the format of the file's suffix.

    Raises:
        ConfigError: No format has it; a plot without matplotlib, or of a report without curves.
        DataError: The file cannot be written.
    """
    check_suffix(path)
    suffix = path.suffix.lower()
    if suffix in _IMAGES:
        plot(found, path)
        return
    made = {
        ".json": lambda: json.dumps(found, indent=2, sort_keys=True) + "\n",
        ".csv": lambda: table(found),
        ".md": lambda: markdown(found),
        ".html": lambda: page(found),
    }[suffix]()
    files.write(path, made.encode())


def plot(found: Mapping[str, Any], path: Path) -> None:
    """
    Draw the ROC curve and the calibration curve.

    Raises:
        ConfigError: There are none, matplotlib is not installed, or it does not know the format.
    """
    drawn = [name for name in ("curve", "calibration") if found.get(name)]
    if not drawn:
        raise ConfigError(
            "--output", f"{path}: this report has no curves; write a .md or .csv file"
        )
    figure = plotting.new_figure(4.5 * len(drawn), 4.5)
    for place, name in enumerate(drawn, 1):
        axes = figure.add_subplot(1, len(drawn), place)
        axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
        if name == "curve":
            axes.plot(*zip(*found["curve"], strict=True))
            area = found["metrics"].get("auc", {}).get("value")
            axes.set(xlabel="1 - specificity", ylabel="sensitivity")
            axes.set_title("ROC curve" + (f", area {area:.4f}" if area is not None else ""))
        else:
            x = [group["probability"] for group in found["calibration"]]
            y = [group["share"] for group in found["calibration"]]
            ends = [
                [max(0.0, g["share"] - g["low"]), max(0.0, g["high"] - g["share"])]
                for g in found["calibration"]
            ]
            axes.errorbar(x, y, yerr=[*zip(*ends, strict=True)], marker="o", capsize=2)
            axes.set(xlabel="mean probability", ylabel="share of events", title="Calibration")
    plotting.save(figure, path)


def _sites(per_site: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Part:
    there = {name for given in per_site.values() for name in given}
    names = [name for name in _OF_A_SITE if name in there][:_COLUMNS_OF_A_SITE]
    rows = [
        (who, *(_with_interval(given[name]) if name in given else _NONE for name in names))
        for who, given in sorted(per_site.items())
    ]
    return Part("By site", ("site", *map(_title, names)), rows)


def _confusion(matrix: Sequence[Sequence[Any]], withheld: Sequence[Sequence[int]] | None) -> Part:
    def cell(at: int, to: int) -> str:
        if withheld is None:
            low, high = matrix[at][to]
            return f"{low:,}" if low == high else f"{low:,} to {high:,}"
        return f"{matrix[at][to]:,}" + ("*" if withheld[at][to] else "")

    count = len(matrix)
    rows = [(f"{at}", *(cell(at, to) for to in range(count))) for at in range(count)]
    star = "; * less what sites withhold" if withheld and any(map(any, withheld)) else ""
    return Part(f"Rows by true and predicted class{star}", ("true", *map(str, range(count))), rows)


def _calibration(groups: Iterable[Mapping[str, float]]) -> Part:
    rows = [
        (
            f"{group['from']:.2f}", f"{group['rows']:,}", f"{group['events']:,}",
            _number(group["probability"]), _with_interval({"value": group["share"], **group}),
        )
        for group in groups
    ]  # fmt: skip
    return Part("Calibration", ("probability from", "rows", "events", "mean", "share"), rows)


def _title(name: str) -> str:
    return _TITLES.get(name, name.replace("_", " "))


def _interval(one: Mapping[str, float]) -> str:
    return f"{_number(one['low'])} to {_number(one['high'])}" if "low" in one else _NONE


def _with_interval(one: Mapping[str, float]) -> str:
    text = f"{one['value']:,}" if isinstance(one["value"], int) else f"{one['value']:.4g}"
    return f"{text} ({one['low']:.3f} to {one['high']:.3f})" if "low" in one else text


def _number(value: float) -> str:
    return f"{value:.6g}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_plain, cells))} |"


def _plain(text: str) -> str:
    """Text of a site or a file, which may hold what Markdown reads as markup."""
    return html.escape(text).replace("|", "\\|").replace("\n", " ")
