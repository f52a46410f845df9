"""The result of a run of trees, as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import RenderableType

from fl_queue.reporting import rich_console

#: Columns that are shown, of those that gain most.
_SHOWN = 20


def renderables(found: Mapping[str, Any]) -> Iterator[RenderableType]:
    """The result as tables. Args: ``found``: of ``Trees.result``, with file and name of the run."""
    sites = f"{found['sites']} site{'' if found['sites'] == 1 else 's'}"
    yield rich_console.text(
        f"{found['file']}: {found['objective']} of {found['target']}, {found['rows']:,} rows at {sites}"
    )
    kept = f"{found['trees']:,} trees, {found['nodes']:,} nodes"
    if found["iterations"] != found["grown"]:
        kept += f" (of {found['grown']} iterations the first {found['iterations']})"
    yield rich_console.text(f"{kept}, {found['steps']:,} rounds")
    yield rich_console.text(_losses("loss", found["loss"], found["iterations"]))
    if found["validation_loss"]:
        rows = f"validation loss, {found['validation_rows']:,} rows"
        yield rich_console.text(_losses(rows, found["validation_loss"], found["iterations"]))
    table = rich_console.table("column", "gain", "share", "splits")
    for row in found["importance"][:_SHOWN]:
        table.add_row(
            row["column"], f"{row['gain']:.6g}", f"{100 * row['share']:.1f} %", f"{row['splits']:,}"
        )
    yield table


def _losses(name: str, losses: list[float], last: int) -> str:
    return f"{name}: {losses[0]:.6g} before the first tree, {losses[last]:.6g} after the last"
