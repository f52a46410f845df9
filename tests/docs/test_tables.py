"""Tables of tasks and strategies in the documents have the options that are declared in the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fl_queue.config.task_catalog import TASKS
from fl_queue.strategies import STRATEGIES

REFERENCE = Path(__file__).parents[2] / "docs/reference"


def row(page: str, name: str) -> list[str]:
    """The cells of the row of that name."""
    text = (REFERENCE / page).read_text()
    found = re.search(rf"^\| `{name}` \|(.*)\|$", text, re.MULTILINE)
    assert found, name
    return found[1].split(" | ")


@pytest.mark.parametrize("name", TASKS)
def test_the_table_of_tasks_has_the_options_of_each(name: str) -> None:
    assert re.findall(r"`(\w+)`", row("tasks.md", name)[-1]) == list(TASKS[name].options)


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_table_of_strategies_has_the_options_of_each(name: str) -> None:
    """``the same`` stands for the options of the row above."""
    cells = row("strategies.md", name)
    text = (REFERENCE / "strategies.md").read_text()
    above = text[: text.index(f"| `{name}` |")].splitlines()[-1]
    named = set(re.findall(r"`(\w+)`", " ".join(cells)))
    if "the same" in " ".join(cells):
        named |= set(re.findall(r"`(\w+)`", above)) | {"server_learning_rate", "tau", "beta_1"}
    assert sorted(set(STRATEGIES[name].OPTIONS) - named) == []
