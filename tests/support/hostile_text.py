"""Names that a hostile client or writer of Redis may choose, for tests of every output."""

from __future__ import annotations

#: Markup of rich that is an error, the title of a terminal, 8-bit CSI, reversed text, formulas of a
#: spreadsheet and of matplotlib, folders, Markdown, and names that tools refuse.
EVIL = (
    "[/]",
    "[link=https://evil.example]x[/link]",
    "\x1b]0;pwned\x07",
    "\x9b2J",
    "\u202edrowssap",
    "a\nError: forged",
    "=cmd|' /C calc'!A0",
    "$\\frac$",
    "a$b",
    "a/../../../../tmp/evil",
    "..",
    "x" * 95,
    "| <img src=x onerror=alert(1)>",
    "`](https://evil.example)",
    "\N{SUPERSCRIPT TWO}",
)
#: Parts that a terminal obeys.
OBEYED = ("\x1b]", "\x9b", "\u202e", "\x07")
