"""
Consoles, tables and texts of rich that show foreign strings as plain text.

rich reads ``[red]`` in a string as markup, ends with a MarkupError at ``[/]``, and hands escape
sequences on to the terminal. So no other module makes a Console, a Table or a Text of rich
(``tests/unit/common/test_escaping.py``).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich import console as rich_console
from rich import table as rich_table
from rich import text as rich_text
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.style import StyleType
from rich.table import Table
from rich.text import Text

from fl_queue.common import escaping

__all__ = ["Console", "Table", "Text", "console", "grid", "lines", "table", "text"]


def console(*, stderr: bool = False, **options: Any) -> Console:
    """A console that reads no markup, and sends no sequence to a terminal but its own. Args: as rich's."""
    return _Console(stderr=stderr, markup=False, emoji=False, highlight=False, **options)


def table(*headers: str, **options: Any) -> Table:
    """A table whose cells, headers and caption are plain text. Args: as rich's."""
    for part in ("title", "caption"):
        options[part] = _plain(options.get(part))
    return _Table(*headers, **options)


def grid(**options: Any) -> Table:
    """A table without lines, of plain text. Args: as rich's."""
    return _Table.grid(**options)


def text(content: object, style: StyleType = "") -> Text:
    """Plain text on one line."""
    return rich_text.Text(escaping.line(content), style=style)


def lines(each: Iterable[str], style: StyleType = "") -> Text:
    """Plain text, a line each."""
    return rich_text.Text("\n".join(map(escaping.line, each)), style=style)


class _Table(rich_table.Table):
    def add_column(
        self, header: RenderableType = "", footer: RenderableType = "", **options: Any
    ) -> None:
        super().add_column(_plain(header), _plain(footer), **options)

    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        super().add_row(*map(_plain, cells), **options)


def _plain(cell: Any) -> Any:
    return rich_text.Text(escaping.line(cell)) if isinstance(cell, str) else cell


class _Console(rich_console.Console):
    """The last look at what goes to the terminal, for a text that came by without ``text``."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable() or segment.text == "\n":
                yield segment
            else:
                yield Segment(escaping.block(segment.text), segment.style)
