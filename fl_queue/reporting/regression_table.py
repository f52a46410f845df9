"""The result of a regression: with p-values and intervals, as tables of text, and as a file."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from rich.console import RenderableType

from fl_queue.common.extras import how_to_install
from fl_queue.reporting import p_values, rich_console

#: Name in the result -> as it is shown.
_FIT = {
    "log_likelihood": "log-likelihood",
    "null_log_likelihood": "null",
    "pseudo_r2": "pseudo R2",
    "r2": "R2",
    "adjusted_r2": "adjusted R2",
    "f": "F",
    "sigma2": "sigma2",
    "aic": "AIC",
    "bic": "BIC",
    "deviance": "deviance",
    "pearson": "Pearson chi-square",
}
#: Bounds of a hazard ratio, and the coefficient's whose exponential they are.
_HAZARDS = {"hazard_low": "low", "hazard_high": "high"}
_MOST_LOGARITHM = 700.0
_FILE_COLUMNS = ("name", "coefficient", "error", "statistic", "p", "low", "high")


def completed(found: Mapping[str, Any], level: float = p_values.LEVEL) -> dict[str, Any]:
    """
    A result with what needs a distribution: statistic, p-value and interval of each coefficient, p of each category.

    Args:
        found: As ``analyses.regression_result.result`` makes it.
        level: Of the intervals, between 0 and 1.
    """
    freedom = found["degrees_of_freedom"] if found["distribution"] == "t" else 0
    width = p_values.quantile(0.5 + level / 2, freedom)
    return {
        **found,
        "level": level,
        "coefficients": [_with_p(one, freedom, width) for one in found["coefficients"]],
        "categories": [
            {**one, "p": p_values.chi_square(one["chi_square"], one["degrees_of_freedom"])}
            for one in found["categories"]
        ],
    }


def _with_p(one: Mapping[str, Any], freedom: int, width: float | None) -> dict[str, Any]:
    value, error = one["coefficient"], one["error"]
    found = {**one, "statistic": None, "p": None, "low": None, "high": None}
    if error:
        found["statistic"] = value / error
        found["p"] = p_values.two_sided(value / error, freedom)
        if width is not None:
            found |= {"low": value - width * error, "high": value + width * error}
            if "hazard_ratio" in one:
                found |= {name: _ratio(found[end]) for name, end in _HAZARDS.items()}
    return found


def _ratio(logarithm: float) -> float | None:
    """None: it is no float64, as the column's unit is far too large."""
    return math.exp(logarithm) if abs(logarithm) < _MOST_LOGARITHM else None


def renderables(found: Mapping[str, Any]) -> Iterator[RenderableType]:
    """The result as lines and a table. Args: ``found``: of ``completed``."""
    for line in header(found):
        yield rich_console.text(line)
    table = rich_console.table(*_titles(found))
    for cells in _rows(found):
        table.add_row(*cells)
    yield table
    for line in footer(found):
        yield rich_console.text(line)


def header(found: Mapping[str, Any]) -> list[str]:
    """Lines above the table: what was fitted, on which rows, and how it went."""
    sites = f"{found['sites']} site{'' if found['sites'] == 1 else 's'}"
    rows = f"{found.get('file', 'table')}: {found['rows']:,} rows at {sites}"
    target = found["target"] + (f" = {found['class']}" if found["class"] else "")
    events = "" if found["events"] is None else f", {found['events']:,} events"
    how = [f"{found['steps']} steps", f"decrement {found['decrement']:.1e}"]
    if found["robust"]:
        how.append(f"robust errors ({found['robust']})")
    if found["ridge"]:
        how.append(f"ridge {found['ridge']:g}, so without errors")
    if found["time"]:
        target = f"{found['time']}, {target}"
        how.append(f"ties by {found['ties'].capitalize()}")
        how.append(f"strata: {', '.join(['site', *found['strata']])}")
    lines = [rows + events, f"{found['family']} regression of {target}: {', '.join(how)}"]
    lines += [f"{name} {found[name]}" for name in ("offset", "weights") if found[name]]
    if found["lost"]["rows"]:
        lines.append(
            f"lost on the way: {found['lost']['sites']} sites, {found['lost']['rows']} rows"
        )
    return lines


def footer(found: Mapping[str, Any]) -> list[str]:
    """Lines below the table: tests of categories, how well it fits, and what is left out."""
    lines = [
        f"{one['column']}: chi-square {one['chi_square']:.6g} with {one['degrees_of_freedom']} degrees of freedom, "
        f"p {p_values.text(one['p'])}"
        for one in found["categories"]
    ]
    fit = found["fit"]
    if fit:
        lines.append(
            "   ".join(f"{title} {fit[name]:.6g}" for name, title in _FIT.items() if name in fit)
        )
    gaps = (
        f"{found['dropped']:,} rows with a gap, or with another text than the levels, are left out"
    )
    if found["withheld"]:
        gaps += f"; {found['withheld']} sites withhold how few theirs are"
    if found["dropped"] or found["withheld"]:
        lines.append(gaps)
    if found["coefficients"][0]["error"] and found["coefficients"][0]["p"] is None:
        lines.append(f"p-values need scipy; {how_to_install('tables')}")
    return lines


def file_text(found: Mapping[str, Any], suffix: str) -> str | None:
    """
    The table as the text of a file; None: there is no such form.

    Args:
        found: Of ``completed``.
        suffix: ``.csv`` (all digits), ``.md`` or ``.html``.
    """
    if suffix == ".csv":
        out = io.StringIO()
        rows = csv.writer(out, lineterminator="\n")
        columns = (*_FILE_COLUMNS, *_hazards(found))
        rows.writerow(columns)
        for one in found["coefficients"]:
            rows.writerow("" if one.get(name) is None else one[name] for name in columns)
        return out.getvalue()
    if suffix == ".md":
        return _markdown(found)
    return _html(found) if suffix == ".html" else None


def _markdown(found: Mapping[str, Any]) -> str:
    titles = ["", *_titles(found)[1:]]
    lines = [*header(found), "", _piped(titles), _piped(["---", *["---:"] * (len(titles) - 1)])]
    lines += [_piped([cell.replace("|", "\\|") for cell in cells]) for cells in _rows(found)]
    return "\n".join([*lines, "", *footer(found)]) + "\n"


def _piped(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _html(found: Mapping[str, Any]) -> str:
    def row(cells: Sequence[str], kind: str) -> str:
        return "<tr>" + "".join(f"<{kind}>{escape(cell)}</{kind}>" for cell in cells) + "</tr>"

    above, below = (
        "\n".join(f"<p>{escape(line)}</p>" for line in lines)
        for lines in (header(found), footer(found))
    )
    body = "\n".join(row(cells, "td") for cells in _rows(found))
    return (
        f'<!doctype html>\n<meta charset="utf-8">\n<title>{escape(found["family"])} regression of '
        f"{escape(found['target'])}</title>\n{above}\n<table>\n{row(_titles(found), 'th')}\n{body}\n</table>\n{below}\n"
    )


def _titles(found: Mapping[str, Any]) -> list[str]:
    tail = round((1 - found["level"]) / 2, 12)
    return [
        "",
        "coef",
        "std err",
        found["distribution"][0].replace("n", "z"),
        "p",
        *(["hazard ratio"] if found["time"] else []),
        f"[{tail:g}",
        f"{1 - tail:g}]",
    ]


def _hazards(found: Mapping[str, Any]) -> tuple[str, ...]:
    """Hazard ratios and their bounds, which are shown in place of the coefficients' bounds."""
    return ("hazard_ratio", *_HAZARDS) if found["time"] else ()


def _rows(found: Mapping[str, Any]) -> Iterator[list[str]]:
    for one in found["coefficients"]:
        numbers = [_number(one[name], "#.6g") for name in ("coefficient", "error")]
        yield [
            one["name"],
            *numbers,
            _number(one["statistic"], ".3f"),
            p_values.text(one["p"]),
            *(_number(one.get(name), "#.6g") for name in _hazards(found) or ("low", "high")),
        ]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
