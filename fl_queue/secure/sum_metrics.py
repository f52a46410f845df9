"""
Metrics in a secure sum: five words for each set, which add up over clients.

    examples | loss, times 2**16 | items that the loss is of | correct | examples that can be correct

``loss`` and ``accuracy`` follow from them; no other metric travels. A set without examples, a loss that is not
finite or too large, and what a task does not measure are zeros, in the count beside them too.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fl_queue import metrics
from fl_queue.protocol.arrays import Int64s
from fl_queue.protocol.records import Sums

WORDS = 5
_LOSS_BITS = 16
_MOST_LOSS = 2**44
_CORRECT = "accuracy_sum"


def words(sums: Sums) -> Int64s:
    """
    The five words of checked sums, (5,) int64; all zero of none.

    Args:
        sums: As of ``metrics``; other keys than those of loss and accuracy are left out.
    """
    found = np.zeros(WORDS, np.int64)
    examples = sums.get("num_examples", 0)
    if examples == 0:
        return found
    found[0] = examples
    loss = sums.get("loss_sum")
    items = sums.get(metrics.LOSS_ITEMS, examples)
    if loss is not None and math.isfinite(loss) and _is_count(items):
        fixed = round(math.ldexp(loss, _LOSS_BITS)) if abs(loss) < _MOST_LOSS else _MOST_LOSS + 1
        if abs(fixed) <= _MOST_LOSS:
            found[1:3] = fixed, items
    found[3:] = _correct(sums, examples)
    return found


def sums_of(total: Int64s, clients: int) -> dict[str, Any]:
    """
    Merged sums of metrics, as ``metrics.merge_clients`` has them, from the sum of words.

    Args:
        total: (5,) int64.
        clients: How many updates are in it: which of them sent what is not known.

    Returns:
        Empty where there are no examples, or a count is negative: a client sent what it may not.
    """
    examples, loss, items, correct, judged = map(int, total)
    if examples <= 0 or items < 0 or not 0 <= correct <= judged:
        return {}
    found: dict[str, Any] = {"num_examples": examples}
    over: dict[str, list[int]] = {}
    if items:
        found["loss_sum"] = math.ldexp(loss, -_LOSS_BITS)
        found[metrics.LOSS_ITEMS] = items
        over |= {key: [clients, examples] for key in ("loss_sum", metrics.LOSS_ITEMS)}
    if judged:
        found[_CORRECT] = correct
        over[_CORRECT] = [clients, judged]
    return found | {metrics.OVER: over}


def _correct(sums: Sums, examples: int) -> tuple[int, int]:
    """Correct examples, and of how many."""
    if table := sums.get("confusion"):
        return sum(row[i] for i, row in enumerate(table)), sum(map(sum, table))
    hits = sums.get(_CORRECT)
    if hits is None or not 0 <= hits <= examples:
        return 0, 0
    return round(hits), examples


def _is_count(value: object) -> bool:
    return isinstance(value, int | float) and value == math.floor(value) and 0 < value <= 2**40
