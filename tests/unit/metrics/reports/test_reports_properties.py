"""Reports of rows that are split over sites, in any way, and what a site's rules leave of them (``joined_bins``)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_queue import metrics
from fl_queue.analyses import joined_bins, report_sums
from fl_queue.analyses.base import Limits
from fl_queue.errors import PolicyRefusal
from fl_queue.metrics import reports
from fl_queue.metrics.reports import binary, classes, roc

OPEN = Limits()
SEEDS = st.integers(0, 2**32 - 1)


def _rows(kind: str, rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    if kind == reports.BINARY:
        return rng.normal(scale=rng.choice([0.1, 3, 30]), size=count), rng.integers(0, 2, count)
    if kind == reports.CLASSES:
        return rng.normal(size=(count, 3)), rng.integers(0, 3, count)
    return rng.normal(size=count), rng.normal(size=count) * 1e6


def _words(kind: str, scores: np.ndarray, truth: np.ndarray, limits: Limits = OPEN) -> list[int]:
    make: Any = {
        reports.BINARY: report_sums.of_binary,
        reports.CLASSES: report_sums.of_classes,
        reports.REGRESSION: report_sums.of_numbers,
    }[kind]
    found: list[int] = make(scores, truth, limits)
    return found


@pytest.mark.parametrize("kind", [*reports.NAMES])
@settings(max_examples=12)
@given(seed=SEEDS, count=st.integers(1, 60), sites=st.integers(1, 5))
def test_any_split_and_order_has_the_same_words(
    kind: str, seed: int, count: int, sites: int
) -> None:
    """A word is a sum over rows: the merged figures are those of one table."""
    rng = np.random.default_rng(seed)
    scores, truth = _rows(kind, rng, count)
    order, place = rng.permutation(count), rng.integers(0, sites, count)
    parts = {}
    for site in range(sites):
        mine = order[place[order] == site]
        words = _words(kind, scores[mine], truth[mine])
        parts[f"site-{site}"] = {"num_examples": len(mine), kind: words}
    merged = metrics.merge_clients(parts)
    whole = {"num_examples": count, kind: _words(kind, scores, truth)}
    assert metrics.finish(merged) == metrics.finish(whole)
    if kind != reports.REGRESSION:  # Sums of digits have many forms.
        assert merged[kind] == whole[kind]


@settings(max_examples=20)
@given(seed=SEEDS, sites=st.integers(1, 4), least=st.integers(2, 12))
def test_joined_bins_hide_small_counts_and_the_bound_holds(
    seed: int, sites: int, least: int
) -> None:
    """No group has a few rows of a class; the area of the rows stays within the bound, over several sites, too."""
    rng = np.random.default_rng(seed)
    parts, odds, truth = [], [], []
    for _ in range(sites):
        count = int(rng.integers(least, 80))
        y = rng.integers(0, 2, count)
        z = np.round(rng.normal(scale=rng.choice([0.2, 2, 30]), size=count) + y, 2)
        try:
            words = _words(reports.BINARY, z, y, Limits(min_cell=least))
        except PolicyRefusal:
            assert any(0 < (y == side).sum() < least for side in (0, 1))
            continue
        parts.append(words)
        odds.append(z)
        truth.append(y)
        _check_groups(words, least, z, y)
        counts, hits = binary.BinaryReport(words).counts, ((z >= 0) & (y == 1)).sum()
        assert counts.hits[0] <= hits <= counts.hits[1]
        assert counts.rejections[0] <= ((z < 0) & (y == 0)).sum() <= counts.rejections[1]
        assert all(
            bound == 0 or bound >= least
            for pair in (counts.hits, counts.rejections)
            for bound in pair[:2]
        )
    if not parts:
        return
    found = roc.area(binary.BinaryReport(reports.added(parts)).histograms)
    events, others = (np.concatenate(odds)[np.concatenate(truth) == side] for side in (1, 0))
    if found is None:
        assert not len(events) or not len(others)
        return
    exact = (events[:, None] > others).mean() + (events[:, None] == others).mean() / 2
    assert abs(found.value - exact) <= found.bound + 1e-12


def _check_groups(words: list[int], least: int, odds: np.ndarray, truth: np.ndarray) -> None:
    parts = binary.WORDS.parts(words)
    for side in (
        side for name in ("single", "spread", "lowest", "highest") for side in parts[name]
    ):
        assert all(rows == 0 or rows >= least for rows in side)
    for rows, events in zip(parts["rows"], parts["events"], strict=True):
        assert all(count == 0 or count >= least for count in (events, rows - events))
    # Ends of groups of both classes are ends of each class's, and no twentieth ends within one.
    bins = binary.bins_of(odds)
    counts = np.stack([np.bincount(bins[truth == side], minlength=binary.BINS) for side in (0, 1)])
    together = joined_bins.joined(counts, least, binary.FIRST_POSITIVE)
    sent = np.stack([np.subtract(parts["rows"], parts["events"]), parts["events"]])
    for side, rows in enumerate(counts):
        groups = joined_bins.joined_within(rows, together, binary.FIRST_POSITIVE, least)
        assert joined_bins.is_enough(np.bincount(groups.group, rows).astype(int), least)
        assert {*together.last.tolist()} <= {*groups.last.tolist()}
        below = np.cumsum(rows)[together.last]
        assert {*np.cumsum(sent[side]).tolist()} <= {0, *below.tolist()}


@settings(max_examples=20)
@given(seed=SEEDS, least=st.integers(2, 12), count=st.integers(1, 120), skill=st.floats(0, 6))
def test_a_confusion_matrix_shows_no_small_count(
    seed: int, least: int, count: int, skill: float
) -> None:
    """Neither a cell, nor what others and the totals leave for those that are withheld."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 4, count)
    scores = rng.normal(size=(count, 4)) + skill * np.eye(4)[truth]
    try:
        words = _words(reports.CLASSES, scores, truth, Limits(min_cell=least))
    except PolicyRefusal:
        assert count < least
        return
    report = classes.ClassesReport(words)
    matrix, hidden = np.array(report.confusion), np.array(report.withheld, bool)
    assert not ((matrix > 0) & (matrix < least)).any()
    hits, counted = report.hits
    assert all(rows == 0 or rows >= least for rows in (hits, counted - hits))
    predicted = scores.argmax(axis=1)
    real = np.array([[((truth == a) & (predicted == b)).sum() for b in range(4)] for a in range(4)])
    for part in (np.eye(4, dtype=bool), ~np.eye(4, dtype=bool)):
        left = hidden & part
        if left.any() and (matrix[part] > 0).any():
            assert left.sum() >= 2
            assert real[left].sum() >= least
    for group in report.groups:
        assert all(rows == 0 or rows >= least for rows in (group.events, group.rows - group.events))


@pytest.mark.parametrize("kind", [*reports.NAMES])
def test_few_rows_are_refused(kind: str) -> None:
    """A table below the site's smallest has no report."""
    scores, truth = _rows(kind, np.random.default_rng(0), 49)
    with pytest.raises(PolicyRefusal, match="min_rows"):
        _words(kind, scores, truth, Limits(min_rows=50))


def test_a_sum_that_one_row_makes_is_refused() -> None:
    """One large error would be shown by the mean error and its square."""
    target = np.linspace(0, 1, 60)
    prediction = target + np.linspace(0, 0.1, 60) ** 3
    prediction[7] += 1e4
    with pytest.raises(PolicyRefusal, match="few of its rows"):
        report_sums.of_numbers(prediction, target, Limits(50, 10, 15))
    assert report_sums.of_numbers(np.full(60, np.inf), target, OPEN) is None
