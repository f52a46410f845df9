"""
Escape text of other processes for display: one function for each kind of output.

Names of runs, clients and metrics, reasons and events come from Redis or from a client, so they may
hold anything. On a terminal that would be escape sequences, in a table markup, in Markdown HTML, in
a plot a formula, in a spreadsheet a function. The output shows the text as it was written, character by
character. No rich here (see ``rich_console``), so that logging can use it at no cost.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable

#: What Markdown reads as markup. An underscore inside a word is none, and names have many.
_MARKDOWN = re.compile(r"[\\`*\[\]<|~&$@]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
#: What GitHub makes a link of by itself.
_LINKED = re.compile(r"(:)(?=//)|(?<=www)(\.)", re.IGNORECASE)
#: A part of a curve's name that TensorBoard and MLflow take as it is.
_CURVE_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.: -]{0,99}")
#: A cell that begins so is a formula to a spreadsheet.
_FORMULA = ("=", "+", "-", "@")


def line(text: object) -> str:
    r"""Text on one line of a terminal: invisible characters are written as ``\x1b``, ``\u202e``."""
    return _escaped(str(text), _python_escape)


def block(text: str) -> str:
    """The same of text with several lines; tabs stay, too."""
    return "".join(
        part if part in ("\n", "\t") else line(part) for part in re.split(r"([\n\t])", text)
    )


def json_text(text: str) -> str:
    """JSON as it may go to a terminal: the same document, as what is not printable is in strings only."""
    parts = re.split(r"(\n)", text)
    return "".join(part if part == "\n" else _escaped(part, _json_escape) for part in parts)


def markdown(text: object) -> str:
    """Text in Markdown, also in a cell of a table: no markup, HTML, link, or formula comes of it."""
    # A line break would end a heading or a row; in prose it is a space.
    flat = "".join(" " if letter.isspace() else letter for letter in str(text))
    escaped = _MARKDOWN.sub(lambda found: f"\\{found[0]}", line(flat))
    # Backslashes before punctuation are not seen; "<" and "&" are HTML before they are Markdown to some.
    escaped = escaped.replace("\\<", "&lt;").replace("\\&", "&amp;")
    return _LINKED.sub(lambda found: f"\\{found[0]}", escaped)


def code(text: object) -> str:
    """Text as a code span of Markdown, which its own backticks do not end."""
    shown = line(text).replace("|", "\\|")
    fence = _fence(shown, 1)
    room = " " if shown.startswith("`") or shown.endswith("`") or not shown else ""
    return f"{fence}{room}{shown}{room}{fence}"


def fenced(text: str, language: str) -> str:
    """Text as a code block of Markdown, which its own backticks do not end."""
    fence = _fence(text, 3)
    return f"{fence}{language}\n{block(text)}\n{fence}"


def plotted(text: object) -> str:
    r"""Text in a plot: a dollar begins no formula. matplotlib shows ``\$`` as ``$``."""
    return line(text).replace("$", "\\$")


def curve_part(name: str) -> str:
    """
    A part of a curve's name as every tool takes it: MLflow refuses others, and reads ".." as a folder.

    Names that had to be changed end in a digest, so that two of them stay two.
    """
    if _CURVE_PART.fullmatch(name) and not name.endswith(" "):
        return name
    digest = hashlib.blake2b(name.encode(errors="backslashreplace"), digest_size=4).hexdigest()
    return f"_{re.sub('[^A-Za-z0-9_-]+', '_', name)[:64]}-{digest}"


def csv_cell(value: object) -> object:
    """
    A cell of a CSV file: text that a spreadsheet would calculate begins with an apostrophe.

    Source: OWASP, CSV Injection.
    """
    if not isinstance(value, str):
        return value
    shown = line(value)
    return f"'{shown}" if shown.lstrip().startswith(_FORMULA) else shown


def file_name(text: str) -> str:
    """Text as a part of a file's name in a header of HTTP."""
    return re.sub("[^A-Za-z0-9._-]+", "_", text)[:100]


def _fence(text: str, least: int) -> str:
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    return "`" * max(least, longest + 1)


def _escaped(text: str, escape: Callable[[str], str]) -> str:
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else escape(letter) for letter in text)


def _python_escape(letter: str) -> str:
    number = ord(letter)
    known = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
    if letter in known:
        return known[letter]
    if number < 0x100:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def _json_escape(letter: str) -> str:
    units = letter.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))
