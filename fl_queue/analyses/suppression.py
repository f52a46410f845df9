"""
Small counts of a site: which are withheld from a table, and how levels of few rows are counted.

A count of 1 to ``least - 1`` rows is withheld, and of each line with a withheld count so many more that no withheld
one follows from the others and the line's total.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fl_queue.protocol.arrays import Int64s

Mask = npt.NDArray[np.bool_]


def withheld(counts: Int64s, least: int, forced: Mask | None = None) -> Mask:
    """
    The counts of a list or of a table of two categories that may not be shown.

    In each row and column with a withheld count, the smallest remaining count above 0 is withheld, too (of equals the
    first), until at least two are and stand for ``least`` rows together. Counts of 0 are shown.

    Args:
        counts: (A,) or (A, B) of one site, of each level or pair of levels.
        least: Fewest rows behind a count that is shown.
        forced: Counts that are withheld for another reason.

    Returns:
        Of the shape of ``counts``; False where the count is 0.
    """
    filled = counts > 0
    mask = filled & (counts < least)
    if forced is not None:
        mask |= filled & forced
    if counts.ndim == 1:
        _complete(mask, counts, least)
        return mask
    while True:
        before = int(mask.sum())
        for line in range(counts.shape[0]):
            _complete(mask[line], counts[line], least)
        for line in range(counts.shape[1]):
            _complete(mask[:, line], counts[:, line], least)
        if int(mask.sum()) == before:
            return mask


def _complete(mask: Mask, counts: Int64s, least: int) -> None:
    """Withhold further counts of one line; changes ``mask``."""
    while mask.any() and (mask.sum() < 2 or counts[mask].sum() < least):
        left = np.flatnonzero(~mask & (counts > 0))
        if not len(left):
            return
        mask[left[np.argmin(counts[left])]] = True


def without_few(codes: Int64s, listed: int, least: int) -> Int64s:
    """
    Codes in which levels of few rows count as other texts, so that no answer shows whether a rare one is there.

    Args:
        codes: (N,) of a site's rows; after the listed levels that of other texts, then that of a missing cell.
        listed: Number of levels that a question lists.
        least: Fewest rows of a level.
    """
    rows = np.bincount(codes, minlength=listed)[:listed]
    shown_as = np.arange(listed + 2)
    shown_as[:listed][rows < least] = listed
    found: Int64s = shown_as[codes].astype(np.int64)
    return found
