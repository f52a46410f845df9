"""
Regressions as a statistician's: coefficients and errors by Newton's steps on exact sums of score and information.

The first step adds up moments, by which columns are centred and scaled; each further one evaluates the likelihood at
one point; with robust errors a last one adds up squared residuals. The state holds the point, and the step's sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np

from fl_queue.analyses import design as designs
from fl_queue.analyses import grid, newton, regression_moments, regression_result
from fl_queue.analyses.base import (
    Analysis,
    Block,
    Columns,
    Layout,
    Limits,
    SiteRows,
    counts,
    flags,
)
from fl_queue.analyses.cox import BRESLOW, Cox
from fl_queue.analyses.design import INTERCEPT, Design, Scale
from fl_queue.analyses.differencing import ALL, Grouping
from fl_queue.analyses.families import FAMILIES, SQUARES_COARSER, Family, Place, SiteDesign
from fl_queue.analyses.newton import Evaluation, Point
from fl_queue.analyses.regression_moments import Moments
from fl_queue.analyses.regression_options import design_of
from fl_queue.errors import AnalysisError, MessageError
from fl_queue.protocol.arrays import Float64s, Int64s

#: What the next step adds up; the last: the fit has ended.
MOMENTS, POINT, SQUARES, DONE = range(4)
_ANY = (-(1 << 63), (1 << 63) - 1)


class Regression(Analysis):
    """The task ``regression``."""

    is_fit = True

    @cached_property
    def family(self) -> Family:
        """The family of the target."""
        if self.options["family"] == Cox.name:
            return Cox(self.options["ties"] or BRESLOW)
        return FAMILIES[self.options["family"]]

    @cached_property
    def design(self) -> Design:
        """What is read. Raises ConfigError."""
        return design_of(self.options)

    @property
    def columns(self) -> Columns:
        """The table's columns."""
        return self.design.columns

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the coefficients."""
        first = (INTERCEPT,) if self.family.has_intercept else ()
        return (*first, *(term.name for term in self.design.terms))

    @property
    def has_robust(self) -> bool:
        """Whether robust errors are wanted."""
        return bool(self.options["robust"])

    @property
    def steps(self) -> int:
        """Moments, as many points as the config lets it evaluate, and squares."""
        return 1 + int(self.options["max_steps"]) + int(self.has_robust)

    def questions(self) -> Sequence[str]:
        """One line: each step is about the same."""
        names = ", ".join(one.name for one in self.design.features)
        target = f"{self.options['target']} on {names}"
        strata = ", ".join(one.name for one in self.design.strata)
        return (f"{self.family.name} regression of {target}{strata and f' by {strata}'}",)

    def groupings(self) -> Sequence[Grouping]:
        """Of each column, the rows without a gap, and with a level that is listed, in all columns."""
        names, listed = (ALL, *self.design.names), tuple(self.columns.categories.items())
        return tuple(Grouping(name, "", names, listed) for name in self.columns.names)

    # The words

    @cached_property
    def moments_layout(self) -> Layout:
        """The words of the first step."""
        return regression_moments.layout(self.design, self.family)

    def point_layout(self, with_squares: bool) -> Layout:
        """The words of a step at a point."""
        size = len(self.names)
        triangle = size * (size + 1) // 2
        blocks = [
            flags("sites", 1),
            counts("rows", 1),
            flags("steep", 1),
            grid.pair("likelihood"),
            grid.pair("pearson"),
            grid.pair("residuals"),
            grid.words("score", size),
            grid.words("information", triangle),
        ]
        return Layout([*blocks, grid.words("squares", triangle)] if with_squares else blocks)

    @cached_property
    def fields(self) -> Layout:
        """The words of a state; those of float64 are their bits."""
        size, terms = len(self.names), len(self.design.terms) + 1

        def block(name: str, *shape: int) -> Block:
            return Block(name, shape, *_ANY)

        return Layout(
            [
                block("step", 1),
                block("phase", 1),
                block("shift", 1),
                block("halvings", 1),
                block("has likelihood", 1),
                block("rows", 1),
                block("since", 1),
                block("likelihood", 1),
                block("null", 1),
                block("decrement", 1),
                block("beta", size),
                block("before", size),
                block("move", size),
                block("centres", terms),
                block("powers", terms),
                block("moments", self.moments_layout.size),
                block("last", self.point_layout(self.has_robust).size),
            ]
        )

    @property
    def total_size(self) -> int:
        """Words of the longest vector."""
        return max(self.moments_layout.size, self.point_layout(self.has_robust).size)

    @property
    def parameters(self) -> int:
        """The coefficients."""
        return len(self.names)

    @property
    def state_size(self) -> int:
        """Words of the point, of the moments and of the last step."""
        return self.fields.size

    def one(self, state: Int64s, name: str) -> int:
        """A field of one whole number."""
        return int(self.fields.view(state, name)[0])

    def floats(self, state: Int64s, name: str) -> Float64s:
        """A field of float64."""
        return self.fields.view(state, name).view(np.float64)

    def layout(self, state: Int64s) -> Layout:
        """The words of the step after a state."""
        phase = self.one(self.state_of(state), "phase")
        if not MOMENTS <= phase < DONE:
            raise MessageError("no step follows the state of a fit that has ended")
        return self.moments_layout if phase == MOMENTS else self.point_layout(phase == SQUARES)

    # What a state holds

    def moments(self, state: Int64s) -> Moments:
        """The sums of the first step."""
        return regression_moments.read(self.moments_layout, self.fields.view(state, "moments"))

    def scale(self, state: Int64s) -> Scale:
        """Centre and scale of the terms, and of the target."""
        return Scale(self.floats(state, "centres"), self.fields.view(state, "powers"))

    def point(self, state: Int64s) -> Point:
        """Where the fit is."""
        has_likelihood = bool(self.one(state, "has likelihood"))
        return Point(
            self.floats(state, "beta").copy(),
            self.floats(state, "before").copy(),
            self.floats(state, "move").copy(),
            float(self.floats(state, "likelihood")[0]) if has_likelihood else None,
            self.one(state, "shift"),
            self.one(state, "halvings"),
            float(self.floats(state, "decrement")[0]),
            self.one(state, "phase") > POINT,
        )

    def last(self, state: Int64s) -> Evaluation:
        """The sums of the last step at a point, with the ridge's part."""
        rows = self.one(state, "rows")
        layout = self.point_layout(self.has_robust)
        words, shift = self.fields.view(state, "last"), self.one(state, "shift")
        size = len(self.names)
        likelihood = grid.pair_value(layout.view(words, "likelihood"), shift)
        score = grid.values(layout.view(words, "score"), shift)
        information = grid.symmetric(layout.view(words, "information"), size, shift)
        dispersion = 1.0
        if self.family.has_scale:
            dispersion = -likelihood / max(rows - size, 1)
        if self.options["ridge"]:
            likelihood, score = self._with_ridge(state, likelihood, score, information)
        return Evaluation(
            bool(layout.view(words, "steep")[0]),
            likelihood,
            score,
            information,
            rows * 2.0**-shift,
            dispersion if dispersion > 0 else 1.0,
        )

    def _with_ridge(
        self, state: Int64s, likelihood: float, score: Float64s, information: Float64s
    ) -> tuple[float, Float64s]:
        """Log-likelihood and score less the penalty's; adds its part to ``information``."""
        penalty = self._penalty(state)
        beta = self.point(state).beta
        loss = 0.0
        for one, weight in zip(beta.tolist(), penalty.tolist(), strict=True):
            loss += 0.5 * weight * one * one
        information[np.diag_indices(len(beta))] += penalty
        return likelihood - loss, score - penalty * beta

    def _penalty(self, state: Int64s) -> Float64s:
        """The ridge times the variance of each scaled column, (p,); 0 for the intercept."""
        moments, powers = self.moments(state), self.fields.view(state, "powers").tolist()
        found = [0.0] if self.family.has_intercept else []
        for (total, square), power in zip(moments.terms[:-1], powers[:-1], strict=True):
            variance = square / moments.rows - (total / moments.rows) ** 2
            found.append(float(self.options["ridge"]) * float(variance / Fraction(4) ** power))
        return np.array(found)

    # A site

    def local(self, state: Int64s, table: SiteRows, limits: Limits) -> Int64s:
        """A site's vector of the step after a state."""
        limits.check_rows(table.rows)
        layout = self.layout(state)
        if layout is self.moments_layout:
            words = regression_moments.words(self.design, self.family, table, limits)
            return layout.packed(words)
        phase, point = self.one(state, "phase"), self.point(state)
        place = Place(
            point.beta, self.moments(state).rows, point.shift, with_squares=phase == SQUARES
        )
        if place.rows < 1:
            raise MessageError("a state of a fit without rows")
        encoded = self._encoded(state, table)
        found = self.family.sums(encoded, place)
        limits.check_weights(*found.weights)
        sums = {
            "sites": np.array([1]),
            "rows": np.array([len(encoded.target)]),
            "steep": np.array([found.steep]),
            "likelihood": found.likelihood,
            "pearson": found.pearson,
            "residuals": found.residuals,
            "score": found.score,
            "information": found.information,
            "squares": found.squares,
        }
        return layout.packed(sums)

    def _encoded(self, state: Int64s, table: SiteRows) -> SiteDesign:
        """The site's rows as the fit's steps read them, kept from step to step."""
        scale = self.scale(state)
        key = (scale.centres.tobytes(), scale.powers.tobytes())
        kept = table.scratch.get("regression")
        if kept is None or kept[0] != key:
            encoded = designs.encoded(self.design, scale, table, self.family)
            kept = table.scratch["regression"] = (key, encoded)
        found: SiteDesign = kept[1]
        return found

    # The aggregator

    def advance(self, state: Int64s, total: Int64s) -> Int64s:
        """The state with the sums of its next step."""
        layout = self.layout(state)
        phase = self.one(state, "phase")
        after = state.copy()
        self.fields.view(after, "step")[:] += 1
        held = self.fields.view(after, "moments" if phase == MOMENTS else "last")
        held[: layout.size] = layout.carried(total)
        if phase != MOMENTS:
            self._keep_fitting(layout, held[: layout.size], after)
            phase = self.one(after, "phase")
        if phase == MOMENTS:
            self._begin(after)
        elif phase == POINT:
            self._move(after)
        else:
            self._end(after)
        return after

    def _keep_fitting(self, layout: Layout, words: Int64s, state: Int64s) -> None:
        """
        Replace sums that do not fit the grid, at a site or all together, by those of a site with all rows.

        Args:
            words: Of ``layout``; changed.
        """
        shift, size = self.one(state, "shift"), len(self.names)
        rows, fits = layout.view(words, "rows").copy(), not layout.view(words, "steep")[0]
        diagonal = np.arange(1, size + 1).cumsum() - 1
        for name in ("information", "squares"):
            if any(block.name == name for block in layout.blocks):
                fits = fits and layout.view(words, name)[diagonal].max() <= grid.MOST
        residuals = grid.pair_value(layout.view(words, "residuals"), shift)
        if not (fits and grid.are_residuals_small(residuals, self.moments(state).rows, shift)):
            words[:] = 0
            layout.view(words, "steep")[:] = 1
        self._change_panel(state, int(rows[0]))

    def _change_panel(self, state: Int64s, rows: int) -> None:
        """
        Begin anew at this point where the sums are of other rows than those before; changes ``state``.

        Args:
            rows: Of the step.
        """
        known = self.one(state, "rows")
        self.fields.view(state, "rows")[:] = rows
        if rows == known:
            return
        if rows <= len(self.names):
            raise AnalysisError(f"{rows} rows are too few for {len(self.names)} coefficients")
        self.fields.view(state, "since")[:] = self.one(state, "step")
        self._set_point(state, newton.start(self.point(state).beta, self.one(state, "shift")))
        if self.one(state, "phase") == SQUARES:
            # The estimate is that of the rows before.
            self.fields.view(state, "phase")[:] = POINT

    def _begin(self, state: Int64s) -> None:
        """Choose centre, scale, grid and start by the moments; changes ``state``."""
        moments, size = self.moments(state), len(self.names)
        if moments.rows <= size:
            raise AnalysisError(
                f"{moments.rows} rows without a gap are too few for {size} coefficients"
            )
        if problem := self.family.problem(moments.target):
            raise AnalysisError(f"the target {self.design.target} {problem}")
        centres, powers = [], []
        for place, (total, square) in enumerate(moments.terms):
            found = designs.centre_and_power(moments.rows, total, square)
            if found is None and place < len(self.design.terms):
                name = self.design.terms[place].name
                raise AnalysisError(f"column {name} has one value over all sites; leave it out")
            centre, power = found or (0.0, 0)
            centres.append(centre)
            powers.append(power)
        self.fields.view(state, "rows")[:] = moments.rows
        self.fields.view(state, "since")[:] = 2
        self.floats(state, "centres")[:] = centres
        self.fields.view(state, "powers")[:] = powers
        shift = grid.shift_of(moments.rows, self.family.bound(moments.target))
        self._set_point(state, newton.start(self.family.start(moments.target, size), shift))
        self.fields.view(state, "phase")[:] = POINT

    def _move(self, state: Int64s) -> None:
        """Go to the next point; changes ``state``."""
        point, found = self.point(state), self.last(state)
        after = newton.refused(point, found)
        if after is None:
            is_first = self.one(state, "since") == 2 and point.likelihood is None
            if is_first:
                self.floats(state, "null")[:] = found.likelihood
            move, decrement = newton.step(found, self.names, is_first)
            beta = None
            if is_first and not self.design.offset and not self.options["ridge"]:
                beta = self.family.second(found.score, found.information, move)
            after = newton.accepted(point, found, move, decrement, beta)
        made = self.one(state, "step") - self.one(state, "since") + 1
        if not after.is_done:
            newton.check(after, self.names, made >= int(self.options["max_steps"]))
        self._set_point(state, after)
        if after.is_done:
            self.fields.view(state, "phase")[:] = SQUARES if self.has_robust else DONE

    def _end(self, state: Int64s) -> None:
        """End the fit, or add up squares again on a coarser grid; changes ``state``."""
        point, found = self.point(state), self.last(state)
        if found.steep:
            self._set_point(state, replace(point, shift=point.shift - grid.COARSER))
        else:
            self.fields.view(state, "phase")[:] = DONE

    def _set_point(self, state: Int64s, point: Point) -> None:
        for name in ("beta", "before", "move"):
            self.floats(state, name)[:] = getattr(point, name)
        self.floats(state, "likelihood")[:] = point.likelihood or 0.0
        self.floats(state, "decrement")[:] = point.decrement
        self.fields.view(state, "has likelihood")[:] = int(point.likelihood is not None)
        self.fields.view(state, "shift")[:] = point.shift
        self.fields.view(state, "halvings")[:] = point.halvings

    def squares(self, state: Int64s) -> Float64s:
        """The sandwich's middle matrix (p, p)."""
        layout, words = self.point_layout(True), self.fields.view(state, "last")
        shift = self.one(state, "shift") - SQUARES_COARSER
        return grid.symmetric(layout.view(words, "squares"), len(self.names), shift)

    def sites(self, state: Int64s) -> int:
        """Sites of the last step."""
        layout, words = self.point_layout(self.has_robust), self.fields.view(state, "last")
        return int(layout.view(words, "sites")[0])

    def pearson(self, state: Int64s) -> float:
        """The sum of squared residuals over their variances, of the last step."""
        layout, words = self.point_layout(self.has_robust), self.fields.view(state, "last")
        return grid.pair_value(layout.view(words, "pearson"), self.one(state, "shift"))

    def is_done(self, state: Int64s) -> bool:
        """Whether the fit has ended."""
        return self.one(self.state_of(state), "phase") == DONE

    def model(self, state: Int64s) -> dict[str, Any] | None:
        """The coefficients of a fit that has ended, as JSON for other programs; None: there are none yet."""
        return regression_result.model(self, state) if self.is_done(state) else None

    def result(self, state: Int64s) -> dict[str, Any] | None:
        """Coefficients with their errors, and how well they fit."""
        return regression_result.result(self, state) if self.is_done(state) else None
