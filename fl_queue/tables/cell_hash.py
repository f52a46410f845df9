"""
Hashes of cells under a key, in loops that numba compiles and that run without it.

A cell that is a number is hashed by its significant digits, its sign and its exponent of ten, any other one by its
bytes. All arithmetic is of np.uint64: it wraps around in numpy as it does in numba.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache

import numpy as np
import numpy.typing as npt

from fl_queue.common import jit

Hashes = npt.NDArray[np.uint64]
Bytes = npt.NDArray[np.uint8]
Offsets = npt.NDArray[np.int64]

#: Constants of the last mixing: Steele, Lea and Flood, OOPSLA 2014, 453-472 (splitmix64).
_C1, _C2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_27, _30, _31, _32 = (np.uint64(bits) for bits in (27, 30, 31, 32))
#: Added for a number, and for one below 0, so that no text has its hash.
_NUMBER, _BELOW = np.uint64(1 << 63), np.uint64(3 << 62)
_ZERO, _DASH, _16 = np.uint8(ord("0")), np.uint8(ord("-")), np.uint64(16)
#: Bytes of the longest text that stands for another one.
SHORT = 5

# Kinds of bytes, and the states of a number that is read byte by byte.
_OTHER, _DIGIT, _SIGN, _MARK, _E = range(5)
_START, _SIGNED, _WHOLE, _POINT, _PART, _TEN, _TEN_SIGNED, _POWER, _FAILED = range(9)
_NEXT = {
    _START: {_DIGIT: _WHOLE, _SIGN: _SIGNED, _MARK: _POINT},
    _SIGNED: {_DIGIT: _WHOLE, _MARK: _POINT},
    _WHOLE: {_DIGIT: _WHOLE, _MARK: _PART, _E: _TEN},
    _POINT: {_DIGIT: _PART},
    _PART: {_DIGIT: _PART, _E: _TEN},
    _TEN: {_DIGIT: _POWER, _SIGN: _TEN_SIGNED},
    _TEN_SIGNED: {_DIGIT: _POWER},
    _POWER: {_DIGIT: _POWER},
    _FAILED: {},
}
_MOVES = np.array(
    [[_NEXT[state].get(kind, _FAILED) for kind in range(5)] for state in range(9)], np.int64
)
_IS_NUMBER = np.array([state in (_WHOLE, _PART, _POWER) for state in range(9)])
#: A larger exponent is as good as this one; and what makes one positive.
_MOST, _MIDDLE = 1 << 20, 1 << 40


def _kinds_of_bytes() -> npt.NDArray[np.int64]:
    """
    What each byte can be in a number, (256,).

    A point and a comma are both a decimal sign: which one it is, a config may choose, and a row has one hash.
    """
    found = np.full(256, _OTHER, np.int64)
    found[[ord(digit) for digit in "0123456789"]] = _DIGIT
    found[[ord("+"), ord("-")]] = _SIGN
    found[[ord("."), ord(",")]] = _MARK
    found[[ord("e"), ord("E")]] = _E
    return found


def _hash_texts(
    found: Hashes,
    data: Bytes,
    offsets: Offsets,
    first: np.uint64,
    second: np.uint64,
    special: Hashes,
    same: Hashes,
) -> None:
    """Hash bytes. Args: ``special``: hashes of short texts that have those of ``same`` instead."""
    for row in range(len(found)):
        mixed = first
        for place in range(offsets[row], offsets[row + 1]):
            mixed = (mixed ^ np.uint64(data[place])) * second
            mixed = mixed ^ (mixed >> _32)
        mixed = (mixed ^ (mixed >> _30)) * _C1
        mixed = (mixed ^ (mixed >> _27)) * _C2
        found[row] = mixed ^ (mixed >> _31)
        if offsets[row + 1] - offsets[row] <= SHORT:
            for other in range(len(special)):
                if special[other] == found[row]:
                    found[row] = same[other]
                    break


def _hash_numbers(
    found: Hashes,
    data: Bytes,
    offsets: Offsets,
    first: np.uint64,
    second: np.uint64,
    kinds: npt.NDArray[np.int64],
) -> None:
    """Hash those cells again that are numbers: by their digits, each with the zeros before it, and the exponent."""
    for row in range(len(found)):
        state, zeros, power, scale, sign = _START, 0, 0, 0, 1
        digits, is_zero = first, True
        for place in range(offsets[row], offsets[row + 1]):
            byte = data[place]
            state = _MOVES[state, kinds[byte]]
            if state == _TEN_SIGNED and byte == _DASH:
                sign = -1
            if kinds[byte] != _DIGIT:
                continue
            if state == _POWER:
                power = min(10 * power + int(byte) - 48, _MOST)
                continue
            scale -= int(state == _PART)
            if byte != _ZERO:
                digits = (digits ^ (np.uint64(zeros) * _16 + np.uint64(byte - _ZERO))) * second
                digits = digits ^ (digits >> _32)
                zeros, is_zero = -1, False
            zeros += int(not is_zero)
        if _IS_NUMBER[state]:
            scale = 0 if is_zero else scale + zeros + sign * power
            is_below = not is_zero and data[offsets[row]] == _DASH
            mixed = digits ^ np.uint64(scale + _MIDDLE) ^ (_BELOW if is_below else _NUMBER)
            mixed = (mixed ^ (mixed >> _30)) * _C1
            mixed = (mixed ^ (mixed >> _27)) * _C2
            found[row] = mixed ^ (mixed >> _31)


@cache
def _loops() -> tuple[jit.Loop, jit.Loop]:
    # Buffers of Arrow are not to be written to.
    data, offsets = (f"Array({kind}, 1, 'C', readonly=True)" for kind in ("uint8", "int64"))
    both = f"uint64[::1], {data}, {offsets}, uint64, uint64"
    try:
        texts, numbers = jit.compiled(
            {
                _hash_texts: f"void({both}, uint64[::1], uint64[::1])",
                _hash_numbers: f"void({both}, int64[::1])",
            }
        )
    except ImportError:
        return _hash_texts, _hash_numbers
    return texts, numbers


class CellHash:
    """
    The hash of a column's cells.

    Args:
        key: Two words of 64 bits.
        same: Short texts, and the one by whose hash each is hashed.
    """

    def __init__(self, key: Hashes, same: Mapping[str, str]) -> None:
        self._first, self._second = key[0], key[1] | np.uint64(1)
        self._kinds = _kinds_of_bytes()
        self._special = self._same = np.zeros(0, np.uint64)
        self._special, self._same = (self._of_texts(each) for each in (same.keys(), same.values()))

    def of(self, data: Bytes, offsets: Offsets) -> Hashes:
        """
        Hashes (rows,).

        Args:
            data: The cells' bytes, one after the other.
            offsets: (rows + 1,) where each begins, and the last ends.
        """
        found = np.zeros(len(offsets) - 1, np.uint64)
        texts, numbers = _loops()
        key = (self._first, self._second)
        with np.errstate(over="ignore"):
            texts(found, data, offsets, *key, self._special, self._same)
            numbers(found, data, offsets, *key, self._kinds)
        return found

    def _of_texts(self, texts: Iterable[str]) -> Hashes:
        raw = [text.encode() for text in texts]
        offsets = np.cumsum([0, *map(len, raw)], dtype=np.int64)
        return self.of(np.frombuffer(b"".join(raw), np.uint8), offsets)
