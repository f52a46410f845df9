"""
Marks: state of this process that a later job could see, compared before and after a job.

A task that keeps something on itself or in its module, or writes into its data, would make the next round
depend on this one; then nothing is kept. Imports torch; no Redis here.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

from fl_queue.client import process_marks
from fl_queue.client.value_marks import of_data, of_value
from fl_queue.tasks.base import Task


class Marks:
    """The marks of one job: taken when it begins, and compared when it has ended."""

    def __init__(self) -> None:
        self._task: Task | None = None
        self._before: dict[str, Any] = {}
        #: Those of the task alone.
        self._of_task: dict[str, Any] = {}
        self._data: list[tuple[Any, Any]] = []
        self._is_unchanged = False

    def take(self, task: Task, data: Iterable[Any]) -> None:
        """
        Take them, of a task and of the data that are kept.

        Where the last job of the same task has left all as it was, those of that time still hold: what has been
        written to since would otherwise go unseen.
        """
        if not (self._is_unchanged and self._task is task):
            self._of_task, self._data = _of_task(task), []
        known = {id(found): marks for found, marks in self._data}
        self._task, self._is_unchanged = task, False
        self._before = {**process_marks.taken(), **self._of_task}
        self._data = [
            (found, known[id(found)] if id(found) in known else of_data(found)) for found in data
        ]

    def add_data(self, found: Any) -> None:
        """Take them of data that have been read meanwhile; what reading left at the task is theirs."""
        self._data.append((found, of_data(found)))
        if self._task is not None:
            self._of_task = _of_task(self._task)
            self._before = {**process_marks.taken(), **self._of_task}

    def changed(self) -> list[str]:
        """What has changed since, in words; a process's settings are set back."""
        if self._task is None:
            return []
        now = {**process_marks.taken(), **_of_task(self._task)}
        names = sorted(self._before.keys() | now.keys())
        found = [name for name in names if self._before.get(name) != now.get(name)]
        if any(of_data(data) != before for data, before in self._data):
            found.append("the samples")
        process_marks.set_back(self._before)
        self._is_unchanged = not found
        return found


def _of_task(task: Task) -> dict[str, Any]:
    modules = list(_own_modules(task))
    own = frozenset(module.__name__ for module in modules)
    found = {
        f"task attribute {name!r}": of_value(value, own)
        for name, value in vars(task).items()
        if name not in task.unmarked
    }
    for module in modules:
        found |= {
            f"global {name!r} of {module.__name__}": of_value(value, own)
            for name, value in vars(module).items()
            if not name.startswith("__")
        }
    return found


def _own_modules(task: Task) -> Iterator[ModuleType]:
    """The modules of a task's own code; fl-queue's own have no state of a job."""
    code = task.code
    names = {code.__name__ if isinstance(code, ModuleType) else getattr(code, "__module__", "")}
    names |= {kind.__module__ for kind in type(task).__mro__}
    for name in sorted(names):
        module = sys.modules.get(name)
        if module is not None and name.partition(".")[0] not in ("fl_queue", "abc", "builtins"):
            yield module
