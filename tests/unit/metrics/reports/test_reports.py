"""Figures of a report against scikit-learn on the rows themselves, and against figures that were found otherwise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from sklearn import metrics as reference
from sklearn.calibration import calibration_curve
from sklearn.datasets import load_breast_cancer, load_diabetes

from fl_queue import metrics
from fl_queue.analyses import report_sums
from fl_queue.analyses.base import Limits
from fl_queue.errors import MessageError
from fl_queue.metrics import reports
from fl_queue.metrics.reports import binary, calibration, classes, intervals, regression, roc

OPEN = Limits()
#: The logistic regression of the breast cancer data by statsmodels: constant, and a coefficient of each column.
COLUMNS = {
    "mean radius": 1.300653352,
    "mean texture": 0.3828008831,
    "mean smoothness": 102.7973758,
    "mean concavity": 18.5184779,
    "mean symmetry": 14.37445986,
}
CONSTANT = -40.73798025


@pytest.fixture(scope="module")
def breast_cancer() -> tuple[np.ndarray, np.ndarray]:
    """Log-odds of malignant (569,), and whether it is so."""
    found = load_breast_cancer()
    names = list(found.feature_names)
    columns = [found.data[:, names.index(name)] * value for name, value in COLUMNS.items()]
    return CONSTANT + np.sum(columns, axis=0), (1 - found.target).astype(np.int64)


def test_the_golden_area_and_its_error(breast_cancer: tuple[np.ndarray, np.ndarray]) -> None:
    """The area of the bins is within its bound of that of the rows, and has DeLong's error."""
    odds, truth = breast_cancer
    found = metrics.finish(
        {"num_examples": 569, reports.BINARY: report_sums.of_binary(odds, truth, OPEN)}
    )
    assert found["auc"] == pytest.approx(0.9855451615, abs=1e-10)
    assert found["auc_bound"] == pytest.approx(0.000172, abs=1e-6)
    assert found["auc_error"] == pytest.approx(0.0039356865, abs=1e-10)
    exact = reference.roc_auc_score(truth, odds)
    assert exact == pytest.approx(0.9855980128, abs=1e-10)
    assert abs(found["auc"] - exact) <= found["auc_bound"]


def test_a_binary_report_is_that_of_scikit_learn(
    breast_cancer: tuple[np.ndarray, np.ndarray],
) -> None:
    """Counts are equal; sums of fractions are to 2**-31 a row; curves are those of the rows, at the bins' edges."""
    odds, truth = breast_cancer
    words = report_sums.of_binary(odds, truth, OPEN)
    report, found = binary.BinaryReport(words), reports.values_of(reports.BINARY, words)
    p = 1 / (1 + np.exp(-odds))
    predicted = (odds >= 0).astype(int)
    (tn, fp), (fn, tp) = reference.confusion_matrix(truth, predicted)
    assert report.counts == binary.Counts(fn + tp, tn + fp, (tp, tp, tp), (tn, tn, tn))
    assert (found["rows"], found["events"]) == (569, 212)
    assert found["accuracy"] == reference.accuracy_score(truth, predicted)
    assert found["f1"] == pytest.approx(reference.f1_score(truth, predicted), abs=1e-15)
    assert found["sensitivity"] == reference.recall_score(truth, predicted)
    assert found["specificity"] == reference.recall_score(truth, predicted, pos_label=0)
    assert found["brier"] == pytest.approx(reference.brier_score_loss(truth, p), abs=2**-31)
    assert found["log_loss"] == pytest.approx(reference.log_loss(truth, p), abs=2**-31)
    assert found["mean_probability"] == pytest.approx(p.mean(), abs=2**-31)
    shares, means = calibration_curve(truth, p, n_bins=20)
    assert [group.events / group.rows for group in report.groups] == pytest.approx(
        shares, abs=1e-15
    )
    assert [group.probability for group in report.groups] == pytest.approx(means, abs=1e-9)
    # A fit has slope 1 and intercept 0 on its own rows; the bins' middles are 0.025 away at most.
    assert found["calibration_slope"] == pytest.approx(1, abs=2e-3)
    assert found["calibration_intercept"] == pytest.approx(0, abs=5e-3)
    edges = (binary.bins_of(odds)).astype(float)
    false, true, _ = reference.roc_curve(truth, edges, drop_intermediate=False)
    assert np.allclose(roc.curve(report.histograms), np.stack([false, true], axis=1), atol=1e-15)


def test_a_report_of_classes_is_that_of_scikit_learn() -> None:
    """The matrix is equal; losses are to 2**-31 a row."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, 500)
    scores = rng.normal(size=(500, 4)) + 2 * np.eye(4)[truth]
    words = report_sums.of_classes(scores, truth, OPEN)
    found, report = reports.values_of(reports.CLASSES, words), classes.ClassesReport(words)
    p = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    predicted = scores.argmax(axis=1)
    assert report.confusion == reference.confusion_matrix(truth, predicted).tolist()
    assert found["accuracy"] == reference.accuracy_score(truth, predicted)
    assert found["balanced_accuracy"] == pytest.approx(
        reference.balanced_accuracy_score(truth, predicted), abs=1e-15
    )
    assert found["f1"] == pytest.approx(
        reference.f1_score(truth, predicted, average="macro"), abs=1e-15
    )
    assert found["log_loss"] == pytest.approx(reference.log_loss(truth, p), abs=2**-31)
    squares = ((p - np.eye(4)[truth]) ** 2).sum(axis=1).mean()
    assert found["brier"] == pytest.approx(squares, abs=2**-31)
    assert sum(group.events for group in report.groups) == report.hits[0]
    assert found["mean_probability"] == pytest.approx(p.max(axis=1).mean(), abs=2**-31)


def test_a_report_of_numbers_is_that_of_scikit_learn() -> None:
    """Each figure is within the rounding of scikit-learn's; ours are rounded once."""
    found = load_diabetes()
    target = found.target
    prediction = 152 + 900 * found.data[:, 2]
    got = reports.values_of(
        reports.REGRESSION, report_sums.of_numbers(prediction, target, OPEN) or []
    )
    assert got["rows"] == 442
    assert got["mae"] == pytest.approx(reference.mean_absolute_error(target, prediction), rel=1e-14)
    assert got["rmse"] == pytest.approx(
        reference.root_mean_squared_error(target, prediction), rel=1e-14
    )
    assert got["r2"] == pytest.approx(reference.r2_score(target, prediction), rel=1e-13)
    assert got["bias"] == pytest.approx((prediction - target).mean(), rel=1e-12)
    slope = np.polyfit(prediction, target, 1)[0]
    assert got["calibration_slope"] == pytest.approx(slope, rel=1e-12)


@pytest.mark.parametrize(
    ("hits", "rows", "low", "high"),
    [(9, 10, 0.5958, 0.9821), (0, 20, 0, 0.1611), (20, 20, 0.8389, 1)],
)
def test_wilsons_interval(hits: int, rows: int, low: float, high: float) -> None:
    """As published tables have it."""
    assert intervals.wilson(hits, rows) == pytest.approx((low, high), abs=5e-5)


def test_one_class_has_no_area_and_no_calibration_line() -> None:
    """What has no value is left out, and the rest stays."""
    words = report_sums.of_binary(np.array([-1.0, 2.0, np.nan]), np.zeros(3, np.int64), OPEN)
    found = reports.values_of(reports.BINARY, words)
    assert not {"auc", "auc_error", "calibration_slope", "sensitivity"} & found.keys()
    assert found["specificity"] == pytest.approx(2 / 3)
    assert reports.values_of(reports.BINARY, [0] * binary.WORDS.size) == {}
    assert reports.values_of(reports.REGRESSION, [0] * regression.WORDS.size) == {}


def test_separated_classes_have_no_calibration_line() -> None:
    """Its slope would grow without end."""
    words = report_sums.of_binary(np.array([-1.0, -2.0, 1.0, 2.0]), np.array([0, 0, 1, 1]), OPEN)
    report = binary.BinaryReport(words)
    assert calibration.line(report.histograms, binary.centres()) is None
    assert calibration.expected_error(report.groups) > 0


@pytest.mark.parametrize(
    ("key", "size"),
    [
        (reports.BINARY, binary.WORDS.size),
        (reports.CLASSES, classes.words(3).size),
        (reports.REGRESSION, regression.WORDS.size),
    ],
)
@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda words: words[:-1], "a list of"),
        (lambda words: [0.5, *words[1:]], "whole numbers"),
        (lambda words: [True, *words[1:]], "whole numbers"),
        (lambda words: [2**62 + 1, *words[1:]], "at most 2"),
        (lambda words: "text", "a list of whole numbers"),
    ],
)
def test_a_bad_report_is_refused(
    key: str, size: int, spoil: Callable[[list[int]], object], what: str
) -> None:
    """Only that of the right length, of whole numbers, is taken; the error names the key."""
    good = {"num_examples": 1, key: [0] * size}
    metrics.check(good)
    with pytest.raises(MessageError, match=rf"metrics.{key}.*{what}"):
        metrics.check({**good, key: spoil([0] * size)})


def test_the_windows_are_those_of_the_exact_sums() -> None:
    """The reader of sums and the module that makes them have the same exponents."""
    from fl_queue.analyses import exact_digits

    for found, window in (
        (regression.VALUES, exact_digits.VALUES),
        (regression.PRODUCTS, exact_digits.PRODUCTS),
    ):
        assert found == (window.words, window.low)
