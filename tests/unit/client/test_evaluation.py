"""What a site shows of an evaluation, and the rows that it evaluates on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

from fl_queue.analyses.base import Limits
from fl_queue.client import evaluation
from fl_queue.client.policy import SitePolicy
from fl_queue.client.site import WorkerSettings
from fl_queue.config import loading
from fl_queue.errors import ConfigError, DataError, PolicyRefusal
from fl_queue.metrics import reports
from fl_queue.tasks.base import ClientData

SUMS: dict[str, Any] = {
    "num_examples": 100,
    "loss_sum": 3.5,
    "accuracy_sum": 97,
    "token_accuracy.ratio.max": [40, 100],
    "hamming.ratio.min": [3, 100],
    "dice.macro.max": [[1, 2], [3, 4]],
    "confusion": [[50, 1], [2, 47]],
}


@pytest.mark.parametrize(
    ("least", "left_out"),
    [
        (1, set()),
        (10, {"accuracy_sum", "hamming.ratio.min", "dice.macro.max", "confusion"}),
        (3, {"dice.macro.max", "confusion"}),
    ],
)
def test_counts_of_few_rows_stay_at_the_site(least: int, left_out: set[str]) -> None:
    """And so do those by class, where the site shows no small counts."""
    found = evaluation.within(SUMS, Limits(min_cell=least))
    assert SUMS.keys() - found.keys() == left_out


def test_a_report_takes_the_place_of_counts_by_score() -> None:
    """They would show the same, or more."""
    found = evaluation.within({**SUMS, reports.BINARY: [0]}, Limits())
    assert "confusion" not in found
    assert reports.BINARY in found


def test_rows_of_an_evaluation() -> None:
    """All of a client, or those that it holds out; none are an error."""
    rows = [TensorDataset(torch.zeros(count, 1), torch.zeros(count)) for count in (6, 3, 0)]
    config = loading.load(None, ("run.purpose=evaluate",), {})
    held_out = replace(config, run=replace(config.run, rows="held_out"))
    assert len(evaluation.rows_of(config, ClientData(rows[0], rows[1]))) == 9  # type: ignore[arg-type]
    assert len(evaluation.rows_of(config, ClientData(rows[0], rows[2]))) == 6  # type: ignore[arg-type]
    assert len(evaluation.rows_of(held_out, ClientData(rows[0], rows[1]))) == 3  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no held-out rows"):
        evaluation.rows_of(held_out, ClientData(rows[0], rows[2]))
    with pytest.raises(DataError, match="has no rows"):
        evaluation.rows_of(config, ClientData(rows[2], rows[2]))


def test_a_policy_says_what_a_site_answers() -> None:
    """Virtual clients have no limits."""
    only = SitePolicy.of_mapping({"allow": ["evaluate"]})
    only.check_asked("evaluate")
    with pytest.raises(PolicyRefusal, match="statistics is not in its list"):
        only.check_asked("statistics")
    assert SitePolicy().per_site
    assert evaluation.rules_of(WorkerSettings()).min_cell == 1
    assert evaluation.rules_of(WorkerSettings(client="site-1")).min_cell == 10


@pytest.mark.parametrize(
    ("given", "field"),
    [
        (("run.rows=held_out",), "run.rows"),
        (("run.purpose=evaluate", "run.task=statistics", 'task.numbers=["age"]'), "run.purpose"),
        (("run.purpose=evaluate", "round.mode=async"), "round.mode"),
    ],
)
def test_fields_that_contradict_an_evaluation(given: tuple[str, ...], field: str) -> None:
    """They are refused when the config is read; a config without the new fields keeps its digest."""
    with pytest.raises(ConfigError, match=rf"^{field}"):
        loading.load(None, given, {})
    assert "purpose" not in loading.load(None, (), {}).record()["run"]
