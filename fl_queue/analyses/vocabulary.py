"""
Names of the levels of a category that several sites have, from a sum of whole numbers.

A site adds each of its names to four cells of a table, chosen by a hash: 1, a check number and the bytes of the name. The
sum of the sites' tables does not depend on order or grouping, and shows the names one after the other: a cell that only
one name is in is that name times the number of sites with it, and taking it out of its other cells leaves more of these.

Source:
    Goodrich and Mitzenmacher 2011, "Invertible Bloom lookup tables", section 2, with sums in place of exclusive ors.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from blake3 import blake3

from fl_queue.analyses.base import Block
from fl_queue.protocol.arrays import Int64s

#: Longest name, bytes in UTF-8; four of them are a word.
MAX_BYTES = 64
#: Names of all sites together that are surely found; each part of the table has half as many cells more.
MAX_NAMES = 256
_PARTS, _CELLS = 4, 160
_COUNT, _CHECK, _TEXT = 0, 1, 2
_WIDTH = _TEXT + MAX_BYTES // 4
#: No word of a site is larger: a thousand names in one cell.
_HIGH = 1000 << 32


def block(name: str) -> Block:
    """The words of a site. Args: ``name``: of the block."""
    return Block(name, (_PARTS * _CELLS, _WIDTH), 0, _HIGH)


def can_be_named(text: str) -> bool:
    """Whether a text is short enough, and of characters that are printed."""
    return text.isprintable() and 0 < len(text.encode(errors="replace")) <= MAX_BYTES


def words_of(names: Iterable[str]) -> Int64s:
    """A site's words (cells, words of a cell). Args: ``names``: each once, all of which ``can_be_named``."""
    found = np.zeros((_PARTS * _CELLS, _WIDTH), np.int64)
    for name in names:
        found[_places(name)] += _entry(name)
    return found


def names_of(total: Int64s) -> list[str] | None:
    """
    The names in a sum of sites' words, sorted by code point.

    Args:
        total: (cells, words of a cell).

    Returns:
        None where there are more than can be found, or a site has sent words that are none.
    """
    rest = total.copy()
    found: set[str] = set()
    waiting = list(range(len(rest)))
    while waiting:
        place = waiting.pop()
        name = _only(rest[place])
        if name is None or place not in (places := _places(name)):
            continue
        found.add(name)
        rest[places] -= rest[place, _COUNT] * _entry(name)
        waiting += places
    return sorted(found) if not rest.any() else None


def _only(cell: Int64s) -> str | None:
    """The one name of a cell; None: there are several, or none."""
    sites = int(cell[_COUNT])
    if sites < 1 or (cell % sites).any() or (cell < 0).any():
        return None
    one = cell // sites
    if (one[_TEXT:] >= 1 << 32).any():
        return None
    raw = one[_TEXT:].astype("<u4").tobytes().rstrip(b"\0")
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        return None
    is_it = can_be_named(name) and int(one[_CHECK]) == _hashes(name)[0]
    return name if is_it else None


def _entry(name: str) -> Int64s:
    raw = name.encode().ljust(MAX_BYTES, b"\0")
    return np.array([1, _hashes(name)[0], *np.frombuffer(raw, "<u4")], np.int64)


def _places(name: str) -> list[int]:
    """A cell of each part."""
    return [part * _CELLS + number % _CELLS for part, number in enumerate(_hashes(name)[1:])]


def _hashes(name: str) -> list[int]:
    raw = blake3(name.encode()).digest(4 * (1 + _PARTS))
    return np.frombuffer(raw, "<u4").tolist()  # type: ignore[no-any-return]
