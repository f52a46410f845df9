"""
Exact sums of float64: of values, and of products of two values, without any rounding.

A sum is ``sum of d_i * 2**(32 i + low)`` over int64 words ``d_i``. The 53-bit mantissa of each value falls on three
of them, so that adding is adding of integers: the same words for any order and any split of the values. A product is
two float64 that add up to it exactly (Veltkamp's splitting, Dekker's product: Numer. Math. 18, 1971, 224-242).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from fl_queue.analyses import loops
from fl_queue.protocol.arrays import Float64s, Int64s

#: Values taken together: their parts stay in the cache, and words are carried before they can overflow.
_BLOCK = 1 << 15
#: A value is 0, or its magnitude is in [2**-64, 2**64).
LEAST, MOST = 2.0**-64, 2.0**64
#: Veltkamp's constant of float64: 2**27 + 1.
_SPLITTER = 134217729.0
_LOW = np.int64(0xFFFFFFFF)
_HALF = np.int64(1 << 31)


@dataclass(frozen=True)
class Window:
    """
    The bits that a sum's words cover.

    Args:
        low: Exponent of the lowest bit.
        words: Number of words of 32 bits each.
    """

    low: int
    words: int


#: Of sums of values, and of sums of products.
VALUES = Window(-128, 8)
PRODUCTS = Window(-256, 14)


def are_summable(values: Float64s) -> bool:
    """Whether each value is 0, or of a magnitude in [2**-64, 2**64); NaN and infinities are not."""
    sizes = np.abs(values)
    return bool(np.all((sizes == 0) | ((sizes >= LEAST) & (sizes < MOST))))


def sums(values: Float64s, places: npt.NDArray[np.intp], count: int) -> Int64s:
    """
    Exact sums of values by group.

    Args:
        values: (N,) each summable.
        places: (N,) group of each value, 0 to ``count - 1``.
        count: Number of groups.

    Returns:
        (count, 8) words, each in [-2**31, 2**31).
    """
    if found := loops.compiled():
        bins = _bins(count)
        found.add_values(bins, np.ascontiguousarray(values), places)
        return _folded(bins, VALUES)
    return _added(_blocks(values, places), count, VALUES)


def product_sums(
    left: Float64s, right: Float64s, places: npt.NDArray[np.intp], count: int
) -> Int64s:
    """
    Exact sums of the products of two columns by group.

    Args:
        left, right: (N,) each summable.
        places: (N,) group of each row, 0 to ``count - 1``.
        count: Number of groups.

    Returns:
        (count, 14) words, each in [-2**31, 2**31).
    """
    if found := loops.compiled():
        bins = _bins(count)
        found.add_products(bins, *map(np.ascontiguousarray, (left, right)), places)
        return _folded(bins, PRODUCTS)

    def halves() -> Iterator[tuple[Float64s, npt.NDArray[np.intp]]]:
        for start in range(0, len(left), _BLOCK):
            stop = start + _BLOCK
            at = places[start:stop]
            for part in _product(left[start:stop], right[start:stop]):
                yield part, at

    return _added(halves(), count, PRODUCTS)


def value_of(words: Int64s, window: Window) -> Fraction:
    """The number that words stand for; they may be sums of the words of many sites."""
    whole = sum(int(word) << (32 * place) for place, word in enumerate(words))
    return Fraction(whole) * Fraction(2) ** window.low


def _bins(count: int) -> Int64s:
    """Sums by group and exponent, as of ``loops.add_values``."""
    return np.zeros((count, 2 * (loops.LAST - loops.FIRST)), np.int64)


def _folded(bins: Int64s, window: Window) -> Int64s:
    """The words of sums by exponent, (count, K), each in [-2**31, 2**31)."""
    found = np.zeros((len(bins), window.words), np.int64)
    for words, row in zip(found, bins, strict=True):
        whole = 0
        for slot in np.unique(np.flatnonzero(row) // 2).tolist():
            value = int(row[2 * slot]) + (int(row[2 * slot + 1]) << 32)
            shift = loops.FIRST + slot - 1075 - window.low
            # Bits below the window are 0: they are those of the error of a product.
            whole += value << shift if shift >= 0 else value >> -shift
        for place in range(window.words):
            rest = ((whole + (1 << 31)) & 0xFFFFFFFF) - (1 << 31)
            is_last = place == window.words - 1
            words[place] = whole if is_last else rest
            whole = (whole - rest) >> 32
    return found


def _blocks(
    values: Float64s, places: npt.NDArray[np.intp]
) -> Iterator[tuple[Float64s, npt.NDArray[np.intp]]]:
    for start in range(0, len(values), _BLOCK):
        yield values[start : start + _BLOCK], places[start : start + _BLOCK]


def _product(left: Float64s, right: Float64s) -> tuple[Float64s, Float64s]:
    """Two float64 for each row, whose sum is the product exactly."""
    (left_high, left_low), (right_high, right_low) = _split(left), _split(right)
    product = left * right
    error = left_high * right_high - product
    error = error + left_high * right_low
    error = error + left_low * right_high
    return product, error + left_low * right_low


def _split(values: Float64s) -> tuple[Float64s, Float64s]:
    scaled = _SPLITTER * values
    high = scaled - (scaled - values)
    return high, values - high


def _added(
    blocks: Iterator[tuple[Float64s, npt.NDArray[np.intp]]], count: int, window: Window
) -> Int64s:
    total = np.zeros((count, window.words), np.int64)
    for part, at in blocks:
        _add(total, part, at, window)
        carry(total)
    return total


def _add(total: Int64s, values: Float64s, places: npt.NDArray[np.intp], window: Window) -> None:
    """Add the three parts of each mantissa to the words on which they fall."""
    mantissas, exponents = np.frexp(values)
    whole = np.ldexp(np.abs(mantissas), 53).astype(np.int64)
    lowest = np.where(whole == 0, 0, exponents.astype(np.int64) - 53 - window.low)
    word, shift = lowest >> 5, lowest & 31
    low, high = (whole & _LOW) << shift, (whole >> 32) << shift
    signs = np.where(mantissas < 0, np.int64(-1), np.int64(1))
    flat = total.reshape(-1)
    at = places.astype(np.int64) * window.words + word
    for offset, part in enumerate((low & _LOW, (low >> 32) + (high & _LOW), high >> 32)):
        np.add.at(flat, at + offset, signs * part)


def carry(words: Int64s) -> None:
    """Bring each word of (..., K) but the last into [-2**31, 2**31): then equal numbers have equal words."""
    for place in range(words.shape[-1] - 1):
        rest = ((words[..., place] + _HALF) & _LOW) - _HALF
        words[..., place + 1] += (words[..., place] - rest) >> 32
        words[..., place] = rest
