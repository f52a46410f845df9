"""
The result of a regression: coefficients of the table's own columns with their errors, and how well they fit.

In + - * /, sqrt and our log alone, so that all machines agree on it. p-values and intervals are added where it is shown.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from fl_queue.analyses import cholesky, elementary
from fl_queue.analyses.cox import BRESLOW
from fl_queue.analyses.newton import Evaluation
from fl_queue.protocol.arrays import Float64s

if TYPE_CHECKING:
    from fl_queue.analyses.regression import Regression
    from fl_queue.analyses.regression_moments import Moments

#: Of ``model``.
MODEL_SCHEMA = "fl-queue-regression-1"
_LINKS = {"linear": "identity", "logistic": "logit", "poisson": "log", "cox": "log"}
_LOG_2_PI = float.fromhex("0x1.d67f1c864beb5p+0")


def result(analysis: Regression, state: np.ndarray[Any, np.dtype[np.int64]]) -> dict[str, Any]:
    """The result of a fit that has ended."""
    moments, point = analysis.moments(state), analysis.point(state)
    last, rows = analysis.last(state), analysis.one(state, "rows")
    size, design = len(analysis.names), analysis.design
    change = _change(analysis, state)
    beta = cholesky.product(change, point.beta[:, None])[:, 0]
    if analysis.family.has_scale:
        beta[0] += float(analysis.scale(state).centres[-1])
    inverse = cholesky.inverse(cholesky.factor(last.information))
    covariance = _in_columns(change, inverse * last.dispersion)
    found: dict[str, Any] = {
        "sites": analysis.sites(state),
        "rows": rows,
        "lost": {"sites": moments.sites - analysis.sites(state), "rows": moments.rows - rows},
        "dropped": moments.dropped,
        "withheld": moments.withheld,
        "family": analysis.family.name,
        "target": design.target,
        "time": design.time or None,
        "strata": [one.name for one in design.strata],
        "ties": (analysis.options["ties"] or BRESLOW) if design.time else None,
        "events": None
        if analysis.family.has_scale or rows != moments.rows
        else int(moments.target.total),
        "class": design.classes[1] if design.classes else None,
        "offset": design.offset or None,
        "weights": design.weights or None,
        "steps": analysis.one(state, "step"),
        "decrement": point.decrement,
        "robust": analysis.options["robust"] or None,
        "ridge": analysis.options["ridge"],
        "distribution": "t" if analysis.family.has_scale else "normal",
        "degrees_of_freedom": rows - size,
    }
    if analysis.has_robust:
        middle = cholesky.product(cholesky.product(inverse, analysis.squares(state)), inverse)
        if analysis.options["robust"] == "HC1":
            middle *= rows / (rows - size)
        covariance = _in_columns(change, middle)
    errors = None if analysis.options["ridge"] else np.sqrt(np.diagonal(covariance))
    found["coefficients"] = _coefficients(analysis, beta, errors)
    found["covariance"] = None if errors is None else covariance.tolist()
    found["categories"] = [] if errors is None else _tests(analysis, beta, covariance)
    fit = _fit(analysis, state, moments, last)
    found["fit"] = {name: value for name, value in fit.items() if value is not None}
    return found


def model(analysis: Regression, state: np.ndarray[Any, np.dtype[np.int64]]) -> dict[str, Any]:
    """
    The model of a fit that has ended, for other programs.

    The mean of a row's target is the inverse link of the sum of ``coefficient * x`` and of the offset; ``x`` is 1 for
    the intercept, the column's number, or 1 where the column has the level and else 0. Of family ``cox`` it is the hazard
    relative to that of a row whose sum is 0.
    """
    found = result(analysis, state)
    kept = ("family", "target", "class", "time", "strata", "offset", "sites", "rows")
    return {
        "schema": MODEL_SCHEMA,
        "link": _LINKS[analysis.family.name],
        **{name: found[name] for name in kept},
        "terms": [
            {name: one[name] for name in ("name", "column", "level", "coefficient")}
            for one in found["coefficients"]
        ],
    }


def _change(analysis: Regression, state: np.ndarray[Any, np.dtype[np.int64]]) -> Float64s:
    """The matrix (p, p) from coefficients of scaled columns to those of the table's own."""
    scale, size = analysis.scale(state), len(analysis.names)
    first = int(analysis.family.has_intercept)
    found = np.zeros((size, size))
    if first:
        found[0, 0] = 1.0
    for place in range(size - first):
        unit = math.ldexp(1.0, -int(scale.powers[place]))
        found[first + place, first + place] = unit
        if first:
            found[0, first + place] = -float(scale.centres[place]) * unit
    if analysis.family.has_scale:
        found *= math.ldexp(1.0, int(scale.powers[-1]))
    return found


def _in_columns(change: Float64s, covariance: Float64s) -> Float64s:
    return cholesky.product(cholesky.product(change, covariance), np.ascontiguousarray(change.T))


def _coefficients(
    analysis: Regression, beta: Float64s, errors: Float64s | None
) -> list[dict[str, Any]]:
    first = int(analysis.family.has_intercept)
    terms = (None,) * first + analysis.design.terms
    found = []
    for place, (name, term) in enumerate(zip(analysis.names, terms, strict=True)):
        one: dict[str, Any] = {"name": name, "column": None, "level": None}
        if term is not None:
            one["column"] = f"{term.feature} {term.part}" if term.part else term.feature
            one["level"] = term.level_name or None
        one["coefficient"] = float(beta[place])
        one["error"] = None if errors is None else float(errors[place])
        if analysis.design.time:
            ratio = float(elementary.exp(beta[place : place + 1])[0])
            one["hazard_ratio"] = ratio if math.isfinite(ratio) else None
        found.append(one)
    return found


def _tests(analysis: Regression, beta: Float64s, covariance: Float64s) -> list[dict[str, Any]]:
    """Wald's test of each category's coefficients together: b' V**-1 b, chi-square of their number."""
    first = int(analysis.family.has_intercept)
    groups: dict[str, list[int]] = {}
    for place, term in enumerate(analysis.design.terms):
        if term.level_name:
            name = f"{term.feature} {term.part}" if term.part else term.feature
            groups.setdefault(name, []).append(first + place)
    found = []
    for name, places in groups.items():
        part = beta[places]
        try:
            solved = cholesky.solved(cholesky.factor(covariance[np.ix_(places, places)]), part)
        except cholesky.DependenceError:
            continue
        statistic = sum(a * b for a, b in zip(part.tolist(), solved.tolist(), strict=True))
        found.append({"column": name, "chi_square": statistic, "degrees_of_freedom": len(places)})
    return found


def _fit(
    analysis: Regression,
    state: np.ndarray[Any, np.dtype[np.int64]],
    moments: Moments,
    last: Evaluation,
) -> dict[str, float | None]:
    """How well the coefficients fit; None: not known with weights, an offset, a ridge, or after a site was lost."""
    size, rows = len(analysis.names), moments.rows
    if analysis.design.weights or analysis.options["ridge"] or rows != analysis.one(state, "rows"):
        return {}
    if analysis.design.time:
        return _hazards_fit(analysis, state, moments, last)
    has_null = not analysis.design.offset
    mean = moments.target.mean
    if analysis.family.name == "linear":
        power = int(analysis.scale(state).powers[-1])
        residual = math.ldexp(-last.likelihood, 2 * power)
        return _linear_fit(moments, residual, size)
    likelihood, deviance = last.likelihood, -2.0 * last.likelihood
    null = None
    if analysis.family.name == "logistic" and has_null:
        events = float(moments.target.total)
        null = events * _log(float(mean)) + (rows - events) * _log(float(1 - mean))
    if analysis.family.name == "poisson":
        factorials, saturated = moments.constants
        deviance = 2.0 * (saturated - last.likelihood)
        likelihood -= factorials
        if has_null:
            total = float(moments.target.total)
            null = total * _log(float(mean)) - total - factorials
    return {
        **_likelihoods(likelihood, size, rows),
        "null_log_likelihood": null,
        "pseudo_r2": None if null is None else 1.0 - likelihood / null,
        "likelihood_ratio": None if null is None else 2.0 * (likelihood - null),
        "deviance": deviance,
        "pearson": analysis.pearson(state),
    }


def _hazards_fit(
    analysis: Regression,
    state: np.ndarray[Any, np.dtype[np.int64]],
    moments: Moments,
    last: Evaluation,
) -> dict[str, float | None]:
    """Of partial likelihoods: the null is that of coefficients of 0, and each event counts as a row."""
    null = float(analysis.floats(state, "null")[0])
    return {
        **_likelihoods(last.likelihood, len(analysis.names), int(moments.target.total)),
        "null_log_likelihood": null,
        "likelihood_ratio": 2.0 * (last.likelihood - null),
    }


def _linear_fit(moments: Moments, residual: float, size: int) -> dict[str, float | None]:
    """Args: ``residual``: sum of squared residuals."""
    rows, (total, square) = moments.rows, moments.terms[-1]
    spread = float(square - total * total / Fraction(rows))
    explained = spread - residual
    likelihood = -0.5 * rows * (_LOG_2_PI + _log(residual / rows) + 1.0)
    return {
        **_likelihoods(likelihood, size, rows),
        "r2": explained / spread,
        "adjusted_r2": 1.0 - (residual / (rows - size)) / (spread / (rows - 1)),
        "f": (explained / (size - 1)) / (residual / (rows - size)) if size > 1 else None,
        "sigma2": residual / (rows - size),
    }


def _likelihoods(likelihood: float, size: int, rows: int) -> dict[str, float | None]:
    return {
        "log_likelihood": likelihood,
        "aic": 2.0 * size - 2.0 * likelihood,
        "bic": size * _log(float(rows)) - 2.0 * likelihood,
    }


def _log(value: float) -> float:
    return float(elementary.log(np.array([value]))[0])
