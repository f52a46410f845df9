"""Marks of a task are taken once for jobs that follow each other, and miss nothing between them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fl_queue.client import marks as marks_module
from fl_queue.client.marks import Marks


@pytest.fixture
def task() -> Any:
    return SimpleNamespace(seen=0, unmarked=(), code=SimpleNamespace(__name__="nowhere"))


def test_what_was_changed_between_two_jobs_is_found_after_the_second(task: Any) -> None:
    data, marks = torch.zeros(8), Marks()
    marks.take(task, [data])
    assert marks.changed() == []

    task.seen = 1
    data += 1
    marks.take(task, [data])

    assert marks.changed() == ["task attribute 'seen'", "the samples"]


def test_they_are_taken_again_after_a_change_and_for_another_task(
    task: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[Any] = []
    of_task = marks_module._of_task
    monkeypatch.setattr(marks_module, "_of_task", lambda one: (taken.append(one), of_task(one))[1])
    marks = Marks()
    for _ in range(2):
        marks.take(task, [])
        assert marks.changed() == []
    # Before the first job, and after each.
    assert len(taken) == 3

    task.seen = 1
    marks.take(task, [])
    assert marks.changed() == ["task attribute 'seen'"]
    marks.take(task, [])
    assert marks.changed() == []
    other = SimpleNamespace(**vars(task))
    marks.take(other, [])
    assert taken[-1] is other
