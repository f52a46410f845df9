"""
exp, log and the logistic function of + - * / and powers of two, in a fixed order: the same bits on every machine.

Those of libm and of numpy's vector instructions differ between machines in the last bit. Largest error: 0.82 of a
unit in the last place. Source: fdlibm, e_exp.c and e_log.c (Sun Microsystems, 1993).
"""

from __future__ import annotations

import numpy as np

from fl_queue.protocol.arrays import Float64s

_LN2_HIGH, _LN2_LOW = float.fromhex("0x1.62e42fee00000p-1"), float.fromhex("0x1.a39ef35793c76p-33")
_LOG2_E = float.fromhex("0x1.71547652b82fep+0")
#: The polynomial of exp.
_P = [
    float.fromhex(text)
    for text in (
        "0x1.555555555553ep-3",
        "-0x1.6c16c16bebd93p-9",
        "0x1.1566aaf25de2cp-14",
        "-0x1.bbd41c5d26bf1p-20",
        "0x1.6376972bea4d0p-25",
    )
]
#: The polynomial of log.
_L = [
    float.fromhex(text)
    for text in (
        "0x1.5555555555593p-1",
        "0x1.999999997fa04p-2",
        "0x1.2492494229359p-2",
        "0x1.c71c51d8e78afp-3",
        "0x1.7466496cb03dep-3",
        "0x1.39a09d078c69fp-3",
        "0x1.2f112df3e5244p-3",
    )
]
_HALF_ROOT = 0.7071067811865476
#: exp is 0 below, and infinite above; within, powers of two are those of int32.
_LEAST, _MOST = -800.0, 800.0


def exp(values: Float64s) -> Float64s:
    """The exponential of numbers that are not NaN."""
    values = np.clip(np.asarray(values, np.float64), _LEAST, _MOST)
    power = np.rint(values * _LOG2_E)
    high, low = values - power * _LN2_HIGH, power * _LN2_LOW
    rest = high - low
    square = rest * rest
    p1, p2, p3, p4, p5 = _P
    part = rest - square * (p1 + square * (p2 + square * (p3 + square * (p4 + square * p5))))
    found = 1.0 - ((low - (rest * part) / (2.0 - part)) - high)
    with np.errstate(over="ignore", under="ignore"):
        whole: Float64s = np.ldexp(found, power.astype(np.int32))
    return whole


def log(values: Float64s) -> Float64s:
    """The natural logarithm of numbers above 0."""
    mantissas, powers = np.frexp(np.asarray(values, np.float64))
    is_small = mantissas < _HALF_ROOT
    mantissas = np.where(is_small, mantissas * 2.0, mantissas)
    power = (powers - is_small).astype(np.float64)
    rest = mantissas - 1.0
    ratio = rest / (2.0 + rest)
    square = ratio * ratio
    fourth = square * square
    l1, l2, l3, l4, l5, l6, l7 = _L
    even = fourth * (l2 + fourth * (l4 + fourth * l6))
    odd = square * (l1 + fourth * (l3 + fourth * (l5 + fourth * l7)))
    total = odd + even
    half = 0.5 * rest * rest
    found: Float64s = power * _LN2_HIGH - (
        (half - (ratio * (half + total) + power * _LN2_LOW)) - rest
    )
    return found


def sigmoid(values: Float64s) -> Float64s:
    """The logistic function 1 / (1 + exp(-x))."""
    small = exp(-np.abs(values))
    part = 1.0 / (1.0 + small)
    found: Float64s = np.where(values >= 0, part, small * part)
    return found
