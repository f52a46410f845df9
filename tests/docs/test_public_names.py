"""What is public: the documents import nothing else, and old documented paths still lead to it."""

from __future__ import annotations

import importlib
import re

import pytest

import fl_queue
from fl_queue import strategies, tasks
from fl_queue.store.jobs import rq_types
from fl_queue.strategies.base import Strategy
from tests.support.checkout import ROOT
from workers.rq_worker import FLWorker

PUBLIC = (
    "fl_queue",
    "fl_queue.tasks",
    "fl_queue.strategies",
    "fl_queue.errors",
    "fl_queue.metrics",
)


def test_documents_import_what_is_public() -> None:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    starters = sorted((ROOT / "fl_queue/cli/starter").glob("*.txt"))
    found = {
        (page.name, module)
        for page in [*pages, *starters]
        for module in re.findall(
            r"^\s*(?:from|import) (fl_queue[\w.]*)", page.read_text(), re.MULTILINE
        )
    }

    assert len(found) >= 5
    # A built-in task is a module of ``tasks``.
    assert [
        entry
        for entry in found
        if entry[1] not in PUBLIC and not entry[1].startswith("fl_queue.tasks.")
    ] == []


@pytest.mark.parametrize("module", PUBLIC[:3])
def test_every_public_name_is_there(module: str) -> None:
    found = importlib.import_module(module)
    for name in found.__all__:
        assert getattr(found, name) is not None
    with pytest.raises(AttributeError, match="nothing_here"):
        found.nothing_here  # noqa: B018


@pytest.mark.parametrize(
    ("old", "name", "new"),
    [
        ("fl_queue.fields", "Field", strategies.Option),
        ("fl_queue.strategies", "Field", strategies.Option),
        ("fl_queue.tasks", "Usage", tasks.ModelUsage),
        ("fl_queue.sgd", "local_sgd", tasks.local_sgd),
        ("fl_queue.usage", "Usage", tasks.ModelUsage),
        ("fl_queue.jobs", "FLJob", rq_types.FLJob),
        ("fl_queue.jobs", "FLQueue", rq_types.FLQueue),
        ("fl_queue.config", "load", fl_queue.load_config),
        ("fl_queue.trial", "try_task", fl_queue.try_task),
        ("workers.rqworker", "FLWorker", FLWorker),
    ],
)
def test_an_old_path_leads_to_the_new_one(old: str, name: str, new: object) -> None:
    with pytest.warns(DeprecationWarning, match=re.escape(f"{old}.{name} is ")):
        assert getattr(importlib.import_module(old), name) is new


def test_the_base_of_strategies_is_the_public_one() -> None:
    assert strategies.Strategy is Strategy
    assert fl_queue.load_config("demo").run.rounds >= 1
