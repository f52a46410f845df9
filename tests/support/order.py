"""
Order of the suite's files: those that fork their own process, then those that take longest.

pytest-xdist would begin with the files of most tests, which are quick ones, and end with a file of two tests that
takes a minute and a half, in one process beside idle ones.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

#: Their trainings run in a fork of the test's process, as a trainer is a fork of its server: after the tests of
#: some hundred other files that process has seen more than a fork server ever does.
FORKING = (
    "unit/client/test_kept.py",
    "unit/client/test_same_bits.py",
    "unit/client/trainer/test_staying.py",
    "unit/tasks/hf/test_causal_lm.py",
    "unit/tasks/hf/test_text_classification.py",
    "unit/tasks/hf/test_trainer_task.py",
)
#: Half a minute and more each; the longest first.
LONGEST = (
    "fault/test_kill_points.py",
    "fault/test_chaos.py",
    "integration/operations/test_failover.py",
    "fault/test_clocks.py",
    "fault/test_outages.py",
    "fault/test_async_kills.py",
    "fault/test_base_part_kills.py",
    "fault/test_rq_traps.py",
    "integration/operations/test_run_controls.py",
    "integration/operations/test_cluster.py",
    "integration/operations/test_backup.py",
)
#: Then what starts processes, and last what only computes: files of seconds, which end together.
FOLDERS = ("fault", "integration", "benchmarks", "docs", "packaging")


def keep_order(config: pytest.Config) -> None:
    """Have pytest-xdist keep the order."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sort the files; each file's tests stay as they are."""
    items.sort(key=_rank_in(config))


def _rank_in(config: pytest.Config) -> Callable[[pytest.Item], tuple[int, int]]:
    tests = config.rootpath / "tests"
    files = {tests / name: rank for rank, name in enumerate((*FORKING, *LONGEST))}
    folders = {tests / name: rank for rank, name in enumerate(FOLDERS)}

    def rank(item: pytest.Item) -> tuple[int, int]:
        ranks = [folders[parent] for parent in item.path.parents if parent in folders]
        return files.get(item.path, len(files)), next(iter(ranks), len(folders))

    return rank
