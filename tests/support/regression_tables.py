"""Tables of packages, and regressions over sites without Redis, for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped,unused-ignore]

from fl_queue.analyses.base import Limits, SiteRows
from fl_queue.analyses.regression import Regression
from fl_queue.protocol.arrays import Int64s

OPTIONS: dict[str, Any] = {
    "file": "table.csv",
    "family": "linear",
    "target": "y",
    "features": "",
    "columns": {},
    "classes": "",
    "offset": "",
    "weights": "",
    "strata": "",
    "ties": "",
    "robust": "",
    "ridge": 0.0,
    "max_steps": 25,
}
DIABETES = ("age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6")
BREAST_CANCER = (
    "mean radius",
    "mean texture",
    "mean smoothness",
    "mean concavity",
    "mean symmetry",
)
RANDHIE = ("lncoins", "idp", "lpi", "fmde", "physlm", "disea", "hlthg", "hlthf", "hlthp")


def diabetes() -> pd.DataFrame:
    """scikit-learn's, in the units of the publication; the target is ``y``."""
    from sklearn.datasets import load_diabetes  # type: ignore[import-untyped,unused-ignore]

    return load_diabetes(scaled=False, as_frame=True).frame.rename(columns={"target": "y"})


def breast_cancer() -> pd.DataFrame:
    """scikit-learn's; the target ``malignant`` is 0 or 1."""
    from sklearn.datasets import load_breast_cancer  # type: ignore[import-untyped,unused-ignore]

    found = load_breast_cancer(as_frame=True)
    return found.data.assign(malignant=1 - found.target)


def randhie() -> pd.DataFrame:
    """statsmodels': visits of a physician (``mdvis``)."""
    from statsmodels.datasets import (  # type: ignore[import-untyped,unused-ignore]
        randhie as data,
    )

    return data.load_pandas().data


def analysis_of(features: Sequence[str], **options: Any) -> Regression:
    """A regression on these columns."""
    return Regression({**OPTIONS, "features": ", ".join(features), **options})


def site_rows(analysis: Regression, frame: pd.DataFrame) -> SiteRows:
    """A site's rows as an analysis reads them."""
    codes = {}
    for name, levels in analysis.columns.categories.items():
        known = {level: code for code, level in enumerate(levels)}
        cells = [
            len(levels) + 1 if pd.isna(cell) else known.get(cell, len(levels))
            for cell in frame[name]
        ]
        codes[name] = np.array(cells, np.int64)
    numbers = {name: frame[name].to_numpy(np.float64) for name in analysis.columns.numbers}
    return SiteRows(len(frame), numbers, codes)


def states(
    analysis: Regression,
    sites: Sequence[pd.DataFrame],
    limits: Limits | None = None,
    begun: Int64s | None = None,
) -> list[Int64s]:
    """All states of a fit over these sites. Args: ``begun``: the first; None: as the analysis has it."""
    tables = [site_rows(analysis, frame) for frame in sites]
    found = [analysis.initial() if begun is None else begun]
    while not analysis.is_done(found[-1]):
        layout = analysis.layout(found[-1])
        total = np.zeros(layout.size, np.int64)
        for table in tables:
            words = analysis.local(found[-1], table, limits or Limits())
            layout.check(words)
            total = total + words
        found.append(analysis.advance(found[-1], total))
    return found


def split(frame: pd.DataFrame, sites: int, seed: int = 1) -> list[pd.DataFrame]:
    """Rows at random sites."""
    at = np.random.default_rng(seed).integers(0, sites, len(frame))
    return [frame[at == site] for site in range(sites)]


def result_of(
    analysis: Regression, sites: Sequence[pd.DataFrame], limits: Limits | None = None
) -> Mapping[str, Any]:
    """The result over these sites."""
    found = analysis.result(states(analysis, sites, limits)[-1])
    assert found is not None
    return found


def estimates(found: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """Coefficients, and their errors."""
    listed = found["coefficients"]
    return [one["coefficient"] for one in listed], [one["error"] for one in listed]
