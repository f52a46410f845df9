"""
What stays between two jobs of a process: the task, and the data of the clients that it served last.

Whatever is kept can be lost at any moment and changes no bit. Imports torch; no Redis here.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_queue.client.marks import Marks
from fl_queue.client.site import WorkerSettings
from fl_queue.client.site_task import task_of
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import DataError
from fl_queue.protocol.trainer_messages import Request
from fl_queue.tasks import calls, fingerprint, noted_context, phases, task_code
from fl_queue.tasks.base import ClientData, Task
from fl_queue.tasks.context import ClientContext
from fl_queue.tasks.fingerprint import Fingerprint, Opened
from fl_queue.tasks.noted_context import NotedContext

#: Of ``Kept.tidy``: the task's own wish; nothing has changed.
NOT_KEPT = "the task's keep is False"
#: Data sets that are kept; of more, that which was used longest ago goes.
MAX_DATA = 4
#: Times that files may change while they are read.
_ATTEMPTS = 3


@dataclass(frozen=True)
class _Data:
    """Data that were read. Args: ``paths``, ``folders``: what the fingerprint is of; of folders the entries."""

    found: Any
    context: NotedContext
    paths: tuple[str, ...]
    folders: tuple[str, ...]
    fingerprint: Fingerprint

    def holds(self, context: ClientContext, named: tuple[str, ...] | None) -> bool:
        """Whether reading again would give the same. Args: ``named``: what the task names now."""
        return (
            noted_context.fits(self.context, context)
            and named in (None, self.paths)
            and fingerprint.taken(self.paths, self.folders) == self.fingerprint
        )


class Kept:
    """
    The task of one run's config, and data.

    Args:
        site: Whose folder is read.
    """

    def __init__(self, site: WorkerSettings) -> None:
        self._site = site
        self._key: Any = None
        self._task: Task | None = None
        self._data: OrderedDict[Any, _Data] = OrderedDict()
        self.marks = Marks()
        # Such as that which extends a worker's leases: no task is here yet.
        self._threads = threading.enumerate()

    def drop(self) -> None:
        """Forget everything."""
        self._key = self._task = None
        self._data.clear()

    def task(self, request: Request, config: RunConfig) -> Task:
        """
        The task of a request.

        Raises:
            ConfigError: As of ``load_task``.
            CodeChanged: This process has imported its code before the file was edited.
        """
        key = (request.run, request.segment, request.config)
        if self._task is None or key != self._key or not self._task.keep:
            self.drop()
            self._task, self._key = task_of(self._site, config), key
        task_code.check_unchanged(self._task.code)
        self.marks.take(self._task, [data.found for data in self._data.values()])
        return self._task

    def tidy(self) -> list[str]:
        """
        Find out whether the next job may use what is kept; it is dropped if not.

        Returns:
            What the last job has changed, in words.
        """
        changed = self.marks.changed()
        if self._task is not None and not self._task.keep:
            changed.append(NOT_KEPT)
        if changed:
            self.drop()
        return changed

    def client_data(self, task: Task, context: ClientContext) -> ClientData:
        """
        A client's data, as the task gives them.

        Raises:
            DataError: They are missing or unreadable, or change while they are read.
        """
        with context.compute.reproducible(phases.data_seed(context)):
            found: ClientData = self._found(
                ("client", context.client), task, context, lambda noted: calls.data(task, noted)
            )
        return found

    def test_data(self, task: Task, context: ClientContext) -> Any:
        """The task's test data, or None. Raises DataError."""
        with context.compute.reproducible(phases.data_seed(context)):
            return self._found("test", task, context, lambda noted: task.test_data(noted.data_dir))

    def _found(
        self,
        key: Any,
        task: Task,
        context: ClientContext,
        read: Callable[[NotedContext], Any],
    ) -> Any:
        kept, named = self._data.pop(key, None), _named(task, context)
        if kept is None or not kept.holds(context, named):
            kept = self._read(task, context, read)
            self.marks.add_data(kept.found)
        if task.keep and _UNKNOWN not in kept.fingerprint:
            self._data[key] = kept
            while len(self._data) > MAX_DATA:
                self._data.popitem(last=False)
        return kept.found

    def _read(
        self, task: Task, context: ClientContext, read: Callable[[NotedContext], Any]
    ) -> _Data:
        for _ in range(_ATTEMPTS):
            noted = noted_context.noting(context)
            named = _named(task, context)
            paths = named if named is not None else _folder(context)
            before = fingerprint.taken(paths)
            with fingerprint.watching(self._threads) as opened:
                found = read(noted)
            after = fingerprint.taken(paths)
            if named is not None and before != after:
                continue
            folders: tuple[str, ...] = ()
            if named is None:
                folders = _listed(opened, paths)
                paths = (*paths, *sorted(opened.paths.keys() - set(folders)))
                # Something else in the folder may change all the time, such as a log.
                is_unknown = opened.is_open or before != after
                after = fingerprint.taken(paths, folders)
                if is_unknown or opened.have_changed(after):
                    after[_UNKNOWN] = None
            return _Data(found, noted, paths, folders, after)
        raise DataError(
            context.data_dir or "data",
            "its files change while they are read; wait until they are complete",
            public=True,
        )


#: In a fingerprint: the data depend on more than files, and are read for each job.
_UNKNOWN = "\0"


def _named(task: Task, context: ClientContext) -> tuple[str, ...] | None:
    """What the task names; None: nothing, or its data are read by a class derived from that which names files."""
    if any(
        _level(task, "depends_on") > _level(task, name) for name in ("client_data", "test_data")
    ):
        return None
    found: Iterable[Path] | None = task.depends_on(context)
    return None if found is None else tuple(str(path) for path in found)


def _level(task: Task, method: str) -> int:
    """How far above the task the class is that defines a method; the task itself may, too."""
    owners = (task, *type(task).__mro__)
    return next(level for level, owner in enumerate(owners) if method in vars(owner))


def _listed(opened: Opened, inside: tuple[str, ...]) -> tuple[str, ...]:
    """Folders that were listed. Args: ``inside``: folders that count as a whole."""
    found = {*opened.folders, *(path for path in opened.paths if Path(path).is_dir())}
    whole = [Path(path).absolute() for path in inside]
    return tuple(
        sorted(path for path in found if not any(Path(path).is_relative_to(one) for one in whole))
    )


def _folder(context: ClientContext) -> tuple[str, ...]:
    return (context.data_dir,) if context.data_dir else ()
