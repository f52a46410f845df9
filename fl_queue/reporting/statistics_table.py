"""The result of the task ``statistics`` as tables: for a terminal, and as the text of a file (CSV, Markdown, HTML)."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from fl_queue.reporting import survival_tables

#: Shown for a number that there is not.
_NONE = "-"
_COLUMNS = ("site", "question", "row", "column", "number", "value")
#: Line of a result whose answers are kept on another machine.
_ELSEWHERE = "The numbers of each site alone are on the machine of the aggregator: run `fl-queue result RUN` there."
_Found = Mapping[str, Any]
_Line = tuple[str, str, str, str, Any]


@dataclass(frozen=True)
class TextTable:
    """A table of texts. Args: ``note``: a line below it; empty: none."""

    titles: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def header(found: _Found) -> str:
    """The line above all tables. Args: ``found``: of ``analysis_result.completed``."""
    sites = f"{found['sites']} site{'' if found['sites'] == 1 else 's'}"
    where = " and ".join(found.get("where", ()))
    chosen = f" where {where}" if where else ""
    return f"{found['file']}{chosen}: {found['rows']:,} rows at {sites}"


def tables(found: _Found) -> Iterator[TextTable]:
    """The tables of a result, without survival curves. Args: ``found``: of ``analysis_result.completed``."""
    if found["numbers"]:
        yield _numbers(found["numbers"])
    for name, levels in found["levels"].items():
        yield _listed(name, levels, ("rows",))
    for name, named in found.get("vocabulary", {}).items():
        listed = "too many to be found" if named is None else ", ".join(named) or _NONE
        yield TextTable((), (), f"levels of {name}: {listed}")
    for name, groups in found["groups"].items():
        yield _listed(name, groups, ("rows", "mean", "sd"))
    for name, table in found["tables"].items():
        yield _crossed(name, table)
    if found["correlation"] is not None:
        yield _matrix(found["correlation"])


def footer(found: _Found) -> list[str]:
    """The lines below all tables: what is withheld, and which levels have few rows."""
    is_elsewhere = "per_site" in found and found["per_site"] is None
    lines = (_withheld(found), _few(found), _rounded(found), _ELSEWHERE if is_elsewhere else "")
    return [line for line in lines if line]


def file_text(found: _Found, suffix: str) -> str | None:
    """
    A result as the text of a file; None: there is no such form.

    Args:
        found: Of ``analysis_result.completed``.
        suffix: ``.csv`` (a line for each number, with all digits), ``.md`` or ``.html``.
    """
    if suffix == ".csv":
        out = io.StringIO()
        rows = csv.writer(out, lineterminator="\n")
        rows.writerow(_COLUMNS)
        for site, one in _with_sites(found):
            rows.writerows((site, *line) for line in _lines(one))
        return out.getvalue()
    if suffix == ".md":
        parts = []
        for site, one in _with_sites(found):
            parts += [f"## {site} alone"] if site else []
            parts += [header(one), *map(_markdown, _whole(one)), *footer(one)]
        return "\n\n".join(parts) + "\n"
    return _html(found) if suffix == ".html" else None


def _with_sites(found: _Found) -> Iterator[tuple[str, _Found]]:
    """The result of all sites, under an empty name, and those of each site alone where there are some."""
    yield "", found
    yield from (found.get("per_site") or {}).items()


def _whole(found: _Found) -> list[TextTable]:
    return [*tables(found), *_curves(found.get("survival", {}))]


def _numbers(found: Mapping[str, _Found]) -> TextTable:
    asked = next(iter(found.values())).get("quantiles", ())
    rows = []
    for name, one in found.items():
        quantiles = [_number(quantile["value"]) for quantile in one.get("quantiles", ())]
        moments = [_number(one["mean"]), _number(one["sd"])]
        rows.append(
            [name + _mark(one), f"{one['rows']:,}", _count(one["missing"]), *moments, *quantiles]
        )
    return TextTable(("column", "rows", "missing", "mean", "sd", *map(_quantile, asked)), rows)


def _quantile(found: _Found) -> str:
    return f"{100 * found['quantile']:g} %"


def _listed(name: str, rows: Sequence[_Found], columns: Sequence[str]) -> TextTable:
    shown = []
    for row in rows:
        if row["rows"] or row["withheld"]:
            cells = (_count(row["rows"]) if c == "rows" else _number(row[c]) for c in columns)
            is_shown = row["rows"] or not row["withheld"]
            values = cells if is_shown else (_NONE for _ in columns)
            shown.append([f"{row['level']}{_mark(row)}", *values])
    return TextTable((name, *columns), shown)


def _crossed(name: str, found: _Found) -> TextTable:
    rows = []
    for level, counts, withheld in zip(
        found["rows"], found["counts"], found["withheld"], strict=True
    ):
        cells = [
            f"{count or _NONE}*" if sites else f"{count:,}"
            for count, sites in zip(counts, withheld, strict=True)
        ]
        rows.append([level, *cells])
    note = ""
    if "chi_square" in found:
        note = f"chi-square {found['chi_square']:.6g} with {found['degrees_of_freedom']} degrees of freedom"
    return TextTable((name, *found["columns"]), rows, note)


def _matrix(found: _Found) -> TextTable:
    if found["correlation"] is None:
        return TextTable((), (), "correlation: not enough rows are shown")
    rows = [
        [name, *map(_number, row)]
        for name, row in zip(found["columns"], found["correlation"], strict=True)
    ]
    return TextTable((f"correlation, {found['rows']:,} rows", *found["columns"]), rows)


def _curves(found: Mapping[str, _Found]) -> Iterator[TextTable]:
    for name, curve in found.items():
        rows = [
            [group["level"], f"{time:g}", f"{group['at_risk'][place]:,}"]
            + [_number(group[key][place]) for key in ("survival", "low", "high")]
            for group in curve["groups"]
            if group["rows"]
            for place, time in enumerate(curve["times"])
        ]
        titles = (f"survival {name}", "time", "at risk", "S", "low", "high")
        yield TextTable(titles, rows)


def _lines(found: _Found) -> Iterator[_Line]:
    """Each number of a result."""
    yield from _of("", "", "", found, ("sites", "rows"))
    for name, one in found["numbers"].items():
        yield from _of("numbers", name, "", one, ("rows", "missing", "withheld", "mean", "sd"))
        for quantile in one.get("quantiles", ()):
            for key in ("value", "low", "high"):
                number = f"quantile {quantile['quantile']:g}{'' if key == 'value' else f' {key}'}"
                yield "numbers", name, "", number, quantile[key]
    yield from _named_lines(found.get("vocabulary", {}))
    moments = ("rows", "withheld", "mean", "sd")
    for part, keys in (("levels", moments[:2]), ("groups", moments)):
        for name, levels in found[part].items():
            for one in levels:
                yield from _of(name, one["level"], "", one, keys)
    for name, table in found["tables"].items():
        yield from _crossed_lines(name, table)
    yield from _matrix_lines(found["correlation"])
    for name, curve in found.get("survival", {}).items():
        yield from _curve_lines(name, curve)


def _named_lines(found: Mapping[str, Sequence[str] | None]) -> Iterator[_Line]:
    for name, levels in found.items():
        for level in levels or ():
            yield f"levels of {name}", level, "", "is named", 1


def _crossed_lines(name: str, table: _Found) -> Iterator[_Line]:
    for row, counts, withheld in zip(
        table["rows"], table["counts"], table["withheld"], strict=True
    ):
        for column, count, sites in zip(table["columns"], counts, withheld, strict=True):
            yield name, row, column, "rows", count
            yield name, row, column, "withheld", sites


def _curve_lines(name: str, curve: _Found) -> Iterator[_Line]:
    for group in curve["groups"]:
        for place, time in enumerate(curve["times"] if group["rows"] else ()):
            for key in ("at_risk", "survival", "low", "high"):
                yield f"survival {name}", group["level"], f"{time:g}", key, group[key][place]


def _of(
    question: str, row: str, column: str, found: _Found, keys: Iterable[str]
) -> Iterator[_Line]:
    for key in keys:
        yield question, row, column, key, found[key]


def _matrix_lines(found: _Found | None) -> Iterator[_Line]:
    for key in ("correlation", "covariance"):
        matrix = found[key] if found is not None else None
        if found is None or matrix is None:
            continue
        for name, row in zip(found["columns"], matrix, strict=True):
            for other, value in zip(found["columns"], row, strict=True):
                yield key, name, other, key, value


def _markdown(table: TextTable) -> str:
    def row(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    if not table.titles:
        return table.note
    lines = [row(table.titles), row(["---", *["---:"] * (len(table.titles) - 1)])]
    lines += map(row, table.rows)
    return "\n".join(lines) + (f"\n\n{table.note}" if table.note else "")


def _html(found: _Found) -> str:
    parts: list[str] = []
    for site, one in _with_sites(found):
        parts += [f"<h2>{escape(site)} alone</h2>"] if site else []
        parts.append(f"<p>{escape(header(one))}</p>")
        parts += map(_html_table, _whole(one))
        parts += [f"<p>{escape(line)}</p>" for line in footer(one)]
    title = f"Statistics of {escape(found['file'])}"
    whole_text = "\n".join(parts)
    return f'<!doctype html>\n<meta charset="utf-8">\n<title>{title}</title>\n{whole_text}\n'


def _html_table(table: TextTable) -> str:
    def row(cells: Sequence[str], kind: str) -> str:
        return "<tr>" + "".join(f"<{kind}>{escape(cell)}</{kind}>" for cell in cells) + "</tr>"

    parts = []
    if table.titles:
        body = "\n".join(row(cells, "td") for cells in table.rows)
        parts.append(f"<table>\n{row(table.titles, 'th')}\n{body}\n</table>")
    if table.note:
        parts.append(f"<p>{escape(table.note)}</p>")
    return "\n".join(parts)


def _mark(found: Mapping[str, Any]) -> str:
    return "*" if found["withheld"] else ""


def _withheld(found: Mapping[str, Any]) -> str:
    """A line if anything is withheld."""
    listed = [
        *found["numbers"].values(),
        *(row for rows in found["levels"].values() for row in rows),
        *(row for rows in found["groups"].values() for row in rows),
    ]
    crossed = any(
        site for table in found["tables"].values() for row in table["withheld"] for site in row
    )
    correlated = found["correlation"] is not None and bool(found["correlation"]["withheld"])
    survival = survival_tables.is_withheld(found["survival"])
    if crossed or correlated or survival or any(row["withheld"] for row in listed):
        return (
            "* withheld by one site or more, whose rows are not counted there (--json: by how many)"
        )
    return ""


def _rounded(found: _Found) -> str:
    """A line if sites round their counts."""
    if "counts_within" not in found:
        return ""
    return f"sites round their counts: each is within {found['counts_within']:g} of that of the rows, and means are of rounded counts"


def _few(found: Mapping[str, Any]) -> str:
    """A line if sites count levels of few rows as others."""
    names = [name for name, rows in found["levels"].items() if rows[0]["few"]]
    if not names:
        return ""
    return f"{', '.join(names)}: sites with few rows of a level, or none, count them as other"


def _number(value: float | None) -> str:
    return _NONE if value is None else f"{value:.6g}"


def _count(value: int | None) -> str:
    return _NONE if value is None else f"{value:,}"
