"""
Proportional hazards (Cox 1972): each site's rows are risk sets of their own, as are the strata of its rows.

So no time leaves a site: the partial log-likelihood, its score and its information are sums over the times of events
here, each rounded once. Rows are put into an order that depends on their numbers alone, so their order in the file
changes no bit. Ties by Breslow or by Efron.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fl_queue.analyses import elementary, grid
from fl_queue.analyses.families import (
    Family,
    Place,
    SiteDesign,
    Sums,
    TargetMoments,
    none,
)
from fl_queue.common import jit
from fl_queue.errors import DataError
from fl_queue.protocol.arrays import Float64s, Int64s

if TYPE_CHECKING:
    from fl_queue.analyses.base import SiteRows
    from fl_queue.analyses.design import Design, Mask

BRESLOW, EFRON = "breslow", "efron"
#: Times of events that are taken together, and words of their sums.
_BLOCK, _BLOCK_WORDS = 1024, 1 << 21
#: Slack of a row's share of a sum, which has no bound.
_SLACK = 64.0


#: Of hazard, hazard * z and hazard * z z'.
_Sums = tuple[Float64s, Float64s, Float64s]


@dataclass(frozen=True)
class RiskSets(SiteDesign):
    """
    A site's rows by stratum, and in a stratum from the last time to the first.

    Args:
        starts: (S + 1,) first row of each stratum, and the number of rows.
        ends: (M,) of each time of events in a stratum, the row behind those at risk.
        first: (M,) the first row with that time.
        strata: (M,) stratum of each time of events.
        deaths: (M,) events at it.
    """

    starts: Int64s
    ends: Int64s
    first: Int64s
    strata: Int64s
    deaths: Int64s


class Parts(NamedTuple):
    """
    What the times of events add, of a site.

    Args:
        at_risk: (D,) sum of the hazards at risk, of each event; by Efron less those of earlier events at its time.
        score: (p,) multiples of the grid's unit.
        information: (p, p) likewise, its lower triangle.
    """

    at_risk: Float64s
    score: Float64s
    information: Float64s


class Cox(Family):
    """
    Times to an event.

    Args:
        ties: How events at the same time are taken: ``breslow`` or ``efron``.
    """

    name = "cox"
    has_intercept = False

    def __init__(self, ties: str = BRESLOW) -> None:
        self.ties = ties

    def check(self, name: str, target: Float64s) -> None:
        """Take events of 0 and 1."""
        if not np.all((target == 0.0) | (target == 1.0)):
            raise DataError(
                "table",
                f"column {name}: an event is 1, and 0 where it was not seen; mend the table",
                public=True,
            )

    def problem(self, target: TargetMoments) -> str:
        """Refuse a target without an event."""
        return "" if target.total else "is 0 in all rows of all sites: there is no event"

    def bound(self, target: TargetMoments) -> float:
        """Return 64: no bound holds."""
        return _SLACK

    def start(self, target: TargetMoments, size: int) -> Float64s:
        """Return zeros."""
        return np.zeros(size)

    def prepared(
        self, encoded: SiteDesign, design: Design, table: SiteRows, is_whole: Mask
    ) -> SiteDesign:
        """Return the rows in their order, with the places of the times of events."""
        times = table.numbers[design.time][is_whole]
        strata = np.zeros(len(times), np.int64)
        for one in design.strata:
            strata = strata * len(one.levels) + table.codes[one.name][is_whole]
        return risk_sets(encoded, times, strata)

    def sums(self, design: SiteDesign, place: Place) -> Sums:
        """Return a site's sums."""
        assert isinstance(design, RiskSets)
        eta = grid.linear(design.columns, place.beta) + design.offset
        if not np.all(np.isfinite(eta)):
            return none(place)
        # The largest of a stratum cancels; without it nothing overflows.
        sizes = np.diff(design.starts)
        largest = np.maximum.reduceat(eta, design.starts[:-1]) if len(eta) else eta
        eta = eta - np.repeat(largest, sizes)
        hazard = elementary.exp(eta)
        parts = event_parts(design, hazard, self.ties == EFRON, place.shift)
        if not np.all(parts.at_risk > 0.0):
            return none(place)
        likelihood = np.zeros(len(design.ends))
        every = np.repeat(np.arange(len(design.ends)), design.deaths)
        is_event = np.flatnonzero(design.target == 1.0)
        np.add.at(likelihood, every, eta[is_event])
        np.subtract.at(likelihood, every, elementary.log(parts.at_risk))
        most = grid.largest_term(place.rows, place.shift)
        sums = np.concatenate([parts.score, parts.information[np.tril_indices(len(place.beta))]])
        if not (np.all(np.abs(sums) <= grid.MOST) and np.all(np.abs(likelihood) <= most)):
            return none(place)
        size, unused = len(place.beta), np.zeros(2, np.int64)
        return Sums(
            steep=0,
            likelihood=grid.pair_sum(likelihood, place.shift),
            pearson=unused,
            residuals=unused,
            score=sums[:size].astype(np.int64),
            information=sums[size:].astype(np.int64),
            squares=np.zeros(0, np.int64),
            weights=(float(hazard.sum()), float((hazard * hazard).sum())),
        )


def risk_sets(encoded: SiteDesign, times: Float64s, strata: Int64s) -> RiskSets:
    """
    Order rows, and find the times of events.

    Args:
        encoded: (N,) rows in any order; the target is 1 for an event, else 0.
        times, strata: (N,) of each.
    """
    # Rows that are equal in all of these may change places: every sum is the same.
    keys = [encoded.offset, *encoded.columns.T[::-1], encoded.target, -times, strata]
    order = np.lexsort(keys)
    times, strata, events = times[order], strata[order], encoded.target[order]
    is_first = np.ones(len(times), np.bool_)
    is_first[1:] = (strata[1:] != strata[:-1]) | (times[1:] != times[:-1])
    first = np.flatnonzero(is_first)
    ends = np.append(first[1:], len(times)).astype(np.int64)
    deaths = np.add.reduceat(events, first) if len(first) else events
    has_event = deaths > 0
    starts = np.flatnonzero(np.append(True, strata[1:] != strata[:-1])) if len(times) else first
    starts = np.append(starts, len(times)).astype(np.int64)
    first = first[has_event].astype(np.int64)
    return RiskSets(
        np.ascontiguousarray(encoded.columns[order]),
        events,
        encoded.offset[order],
        encoded.weights[order],
        starts,
        ends[has_event],
        first,
        np.searchsorted(starts, first, "right").astype(np.int64) - 1,
        deaths[has_event].astype(np.int64),
    )


def event_parts(rows: RiskSets, hazard: Float64s, is_efron: bool, shift: int) -> Parts:
    """
    What the times of events add.

    Of d events at a time with the sums S0, S1 and S2 of hazard, hazard * z and hazard * z z' over the rows at risk, and
    T0, T1 and T2 over those with the event, the l-th of them adds z - A1 / A0 to the score and A2 / A0 - A1 A1' / A0**2
    to the information, where A = S - f T and f = l / d by Efron, 0 by Breslow; l from 0.

    Args:
        hazard: (N,) of each row.
        shift: Of the grid on which each time's part is rounded.

    Source:
        Breslow 1974; Efron 1977; Kalbfleisch and Prentice 2002, section 4.2.
    """
    size, is_event = rows.columns.shape[1], rows.target == 1.0
    found = Parts(np.zeros(int(rows.deaths.sum())), np.zeros(size), np.zeros((size, size)))
    behind = np.cumsum(rows.deaths)
    at_risk, tied = Running(rows.columns, hazard), Running(rows.columns[is_event], hazard[is_event])
    shares = _shares(rows.deaths) if is_efron else np.zeros(len(found.at_risk))
    block = max(1, min(_BLOCK, _BLOCK_WORDS // (size * size)))
    is_new = np.append(True, rows.strata[1:] != rows.strata[:-1])
    for start in range(0, len(behind), block):
        part = slice(start, start + block)
        begins = np.where(is_new[part], rows.starts[rows.strata[part]], -1)
        events = np.append(behind[start] - rows.deaths[start], behind[part])
        risk = at_risk.sums(begins, rows.ends[part])
        tie = tied.sums(events[:-1], events[1:])
        targets = np.zeros((len(begins), size))
        own = slice(int(events[0]), int(events[-1]))
        places = np.repeat(np.arange(len(begins)), rows.deaths[part])
        np.add.at(targets, places, tied.columns[own])
        _add_times(
            risk, tie, (targets, events - events[0], shares[own]), found.at_risk[own], found, shift
        )
    return found


def _shares(deaths: Int64s) -> Float64s:
    """Efron's shares l / d of each event, (D,)."""
    counts = np.repeat(deaths, deaths)
    place = np.arange(len(counts)) - np.repeat(np.cumsum(deaths) - deaths, deaths)
    found: Float64s = place / counts
    return found


class Running:
    """
    Sums of hazard, hazard * z and hazard * z z' over rows, added one after the other.

    Args:
        columns: (N, p) z.
        hazard: (N,).
    """

    def __init__(self, columns: Float64s, hazard: Float64s) -> None:
        size = columns.shape[1]
        self.columns, self.hazard = np.ascontiguousarray(columns), np.ascontiguousarray(hazard)
        self._done = np.zeros(1, np.int64)
        self._total = (np.zeros(1), np.zeros(size), np.zeros((size, size)))

    def sums(self, begins: Int64s, ends: Int64s) -> _Sums:
        """
        The sums at each of several places, one behind the other.

        Args:
            begins: (M,) row at which the sums begin anew; -1: they go on.
            ends: (M,) row behind the last one.

        Returns:
            (M,), (M, p) and (M, p, p), of which the lower triangle.
        """
        count, size = len(ends), self.columns.shape[1]
        found = (np.zeros(count), np.zeros((count, size)), np.zeros((count, size, size)))
        loops = _loops()
        add = running_by_numpy if loops is None else loops.running
        places = np.stack([begins, ends], axis=1).astype(np.int64)
        add(self.columns, self.hazard, places, self._done, *self._total, *found)
        return found


def _add_times(
    risk: _Sums,
    tie: _Sums,
    events: tuple[Float64s, Int64s, Float64s],
    at_risk: Float64s,
    found: Parts,
    shift: int,
) -> None:
    """
    Add the parts of several times of events.

    Args:
        risk, tie: Sums over the rows at risk, and over those with the event.
        events: Sums of z over the latter (M, p); their places (M + 1,); Efron's share of each.
        at_risk: (D,) where each event's sum of hazards is put.
        found: Changed.
    """
    loops = _loops()
    add = times_by_numpy if loops is None else loops.times
    targets, places, shares = events
    unit = math.ldexp(1.0, shift)
    add(*risk, *tie, targets, places, shares, unit, at_risk, found.score, found.information)


def running_by_numpy(  # noqa: PLR0913  as of numba's loop
    columns: Float64s,
    hazard: Float64s,
    places: Int64s,
    done: Int64s,
    none: Float64s,
    one: Float64s,
    two: Float64s,
    out0: Float64s,
    out1: Float64s,
    out2: Float64s,
) -> None:
    """Add as numba's loop does; changes ``done``, the sums so far, and ``out``."""
    for time, (begin, end) in enumerate(places.tolist()):
        if begin >= 0:
            done[0] = begin
            for total in (none, one, two):
                total[:] = 0.0
        for row in range(int(done[0]), end):
            weighted = columns[row] * hazard[row]
            none += hazard[row]
            one += weighted
            two += np.tril(weighted[:, None] * columns[row])
        done[0] = end
        out0[time], out1[time], out2[time] = none[0], one, two


def times_by_numpy(  # noqa: PLR0913  as of numba's loop
    risk0: Float64s,
    risk1: Float64s,
    risk2: Float64s,
    tie0: Float64s,
    tie1: Float64s,
    tie2: Float64s,
    targets: Float64s,
    places: Int64s,
    shares: Float64s,
    unit: float,
    at_risk: Float64s,
    score: Float64s,
    information: Float64s,
) -> None:
    """Add as numba's loop does; changes the last three."""
    for time in range(len(risk0)):
        own, products = targets[time].copy(), np.zeros_like(information)
        for event in range(int(places[time]), int(places[time + 1])):
            share = shares[event]
            hazard = risk0[time] - share * tie0[time]
            at_risk[event] = hazard
            mean = (risk1[time] - share * tie1[time]) / hazard
            own -= mean
            products += (risk2[time] - share * tie2[time]) / hazard - mean[:, None] * mean
        score += np.rint(own * unit)
        information += np.tril(np.rint(products * unit))


class _Loops(NamedTuple):
    running: jit.Loop
    times: jit.Loop


@functools.cache
def _loops() -> _Loops | None:
    """Loops of numba; None: numpy has to do."""
    vector, matrix, cube = "float64[::1]", "float64[:, ::1]", "float64[:, :, ::1]"
    sums, many = (vector, vector, matrix), (vector, matrix, cube)
    running = (matrix, vector, "int64[:, ::1]", "int64[::1]", *sums, *many)
    times = (*many, *many, matrix, "int64[::1]", vector, "float64", *sums)
    try:
        return _Loops(
            *jit.compiled(
                {
                    _running_loop: f"void({', '.join(running)})",
                    _times_loop: f"void({', '.join(times)})",
                }
            )
        )
    except ImportError:
        return None


def _running_loop(  # noqa: PLR0913  a loop of numba takes arrays
    columns: Float64s,
    hazard: Float64s,
    places: Int64s,
    done: Int64s,
    none: Float64s,
    one: Float64s,
    two: Float64s,
    out0: Float64s,
    out1: Float64s,
    out2: Float64s,
) -> None:
    size = columns.shape[1]
    for time in range(places.shape[0]):
        if places[time, 0] >= 0:
            done[0] = places[time, 0]
            none[:] = 0.0
            one[:] = 0.0
            two[:] = 0.0
        for row in range(done[0], places[time, 1]):
            none[0] += hazard[row]
            for i in range(size):
                weighted = columns[row, i] * hazard[row]
                one[i] += weighted
                for j in range(i + 1):
                    two[i, j] += weighted * columns[row, j]
        done[0] = places[time, 1]
        out0[time] = none[0]
        out1[time] = one
        out2[time] = two


def _times_loop(  # noqa: PLR0913  a loop of numba takes arrays
    risk0: Float64s,
    risk1: Float64s,
    risk2: Float64s,
    tie0: Float64s,
    tie1: Float64s,
    tie2: Float64s,
    targets: Float64s,
    places: Int64s,
    shares: Float64s,
    unit: float,
    at_risk: Float64s,
    score: Float64s,
    information: Float64s,
) -> None:
    size = score.shape[0]
    mean, products = np.empty(size), np.empty((size, size))
    for time in range(risk0.shape[0]):
        products[:] = 0.0
        for event in range(places[time], places[time + 1]):
            share = shares[event]
            hazard = risk0[time] - share * tie0[time]
            at_risk[event] = hazard
            for i in range(size):
                mean[i] = (risk1[time, i] - share * tie1[time, i]) / hazard
                targets[time, i] -= mean[i]
                for j in range(i + 1):
                    part = (risk2[time, i, j] - share * tie2[time, i, j]) / hazard
                    products[i, j] += part - mean[i] * mean[j]
        for i in range(size):
            score[i] += np.rint(targets[time, i] * unit)
            for j in range(i + 1):
                information[i, j] += np.rint(products[i, j] * unit)
