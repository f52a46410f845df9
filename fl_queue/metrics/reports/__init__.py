"""
Reports of an evaluation: sums of whole numbers from which curves, areas and their errors are computed.

A report is one list of whole numbers, each a sum over rows, so it is the same for any order and any split of the rows
over sites, but for what sites join. There is one for binary targets, one for classes and one for numbers; a
task's evaluation has one of them at most. ``fl_queue.analyses.report_sums`` adds up a site's rows. No torch here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

from fl_queue.metrics.reports import binary, classes, regression


class _Kind(Protocol):
    """A module of one kind of report."""

    @property
    def NAMES(self) -> tuple[str, ...]:
        """The metrics that it has."""

    def size_problem(self, size: int, /) -> str:
        """Why a report has not that many words; empty: it may."""

    def values(self, words: Sequence[int], /) -> dict[str, float]:
        """Single numbers of a report, by their names."""


BINARY, CLASSES, REGRESSION = "binary_report", "classes_report", "regression_report"
_KINDS: Mapping[str, _Kind] = MappingProxyType(
    {BINARY: binary, CLASSES: classes, REGRESSION: regression}
)
#: The keys of reports among sums, and the metrics that each gives.
NAMES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {key: kind.NAMES for key, kind in _KINDS.items()}
)
#: No word of a site is larger, so that words of 2**20 sites stay whole numbers of 64 bits beside each other.
MAX_WORD = 2**62


def problem(key: str, value: Any) -> str:
    """Why a value is no report of that key; empty when it is."""
    is_list = isinstance(value, list) and {int}.issuperset(map(type, value))
    if not is_list:
        return "a list of whole numbers"
    if wrong := _KINDS[key].size_problem(len(value)):
        return wrong
    if value and (min(value) < -MAX_WORD or max(value) > MAX_WORD):
        return "a list of whole numbers of at most 2**62"
    return ""


def added(values: Sequence[Sequence[int]]) -> list[int]:
    """Reports of several sites, word by word."""
    return [sum(words) for words in zip(*values, strict=True)]


def values_of(key: str, words: Sequence[int]) -> dict[str, float]:
    """Single numbers of a report: those of ``NAMES`` that it has."""
    return _KINDS[key].values(words)
