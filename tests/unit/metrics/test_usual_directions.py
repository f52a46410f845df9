"""A metric whose name means the other direction than it declares is warned of, once."""

from __future__ import annotations

import pytest

from fl_queue.metrics import Mean, Ratio
from fl_queue.metrics.forms import _warn_of, usual_direction
from fl_queue.metrics.kinds import KINDS


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("accuracy", "max"),
        ("top5_accuracy", "max"),
        ("val_error_rate", "min"),
        ("mae", "min"),
        ("accuracy_gap", None),
        ("f1_std", None),
        ("seconds", None),
    ],
)
def test_a_name_shows_a_direction_or_none(name: str, wanted: str | None) -> None:
    assert usual_direction(name) == wanted


def test_built_in_metrics_are_declared_as_their_names_mean() -> None:
    for kind in KINDS.values():
        for name, direction in kind.gives:
            assert usual_direction(name) in (None, direction), name


def test_the_other_direction_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    _warn_of.cache_clear()
    for _ in range(2):
        Ratio("accuracy", "hits", "n", "min")
        Mean("mae", "error_sum")
        Mean("accuracy_gap", "gap_sum", "min")

    texts = [record.getMessage() for record in caplog.records]
    assert len(texts) == 2
    assert texts[0].startswith("metrics: accuracy is declared as better where it is lower; if it")
    assert 'declare direction="min"' in texts[1]
