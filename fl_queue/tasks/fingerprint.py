"""
Fingerprint of what a site's data are read from: names, sizes and times of files, and the files that were opened.

Python's own opening of files is seen (numpy, pandas, PIL and torch included), that of libraries in Rust and C is not; so
all of a data folder belongs to the fingerprint unless the task names the files. No Redis here.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: Path -> size, times of content and of the entry, inode; None: nothing is there.
Fingerprint = dict[str, tuple[int, int, int, int] | None]

#: Of a folder with more entries than that the folders alone are looked at.
MAX_ENTRIES = 100_000
#: Events by which reading depends on more than files.
_OUTSIDE = ("socket.connect", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn")
#: Python's own files: what changes there is code, which is not read again either.
_CODE = (".py", ".pyc", ".so")


class Opened:
    """
    Files that were opened for reading, in the thread that watches.

    Args:
        paths: Absolute paths.
        is_open: Whether something else than a file was asked: a socket, a program.
    """

    def __init__(self) -> None:
        self.paths: set[str] = set()
        self.is_open = False
        self.thread = threading.get_ident()

    def note(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Note an event of Python's audit hook."""
        if threading.get_ident() != self.thread:
            return
        if event in _OUTSIDE:
            self.is_open = True
        elif event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)):
            flags = arguments[2]
            is_read = not isinstance(flags, int) or flags & os.O_ACCMODE == os.O_RDONLY
            path = os.path.abspath(os.fsdecode(arguments[0]))  # noqa: PTH100
            if is_read and not path.endswith(_CODE):
                self.paths.add(path)


class _Hook:
    """The audit hook of this process, which cannot be removed; ``watch``: what it reports to."""

    is_installed = False
    watch: Opened | None = None

    @classmethod
    def install(cls) -> None:
        if not cls.is_installed:
            cls.is_installed = True
            sys.addaudithook(cls.on_event)

    @classmethod
    def on_event(cls, event: str, arguments: tuple[Any, ...]) -> None:
        watch = cls.watch
        if watch is not None and (event == "open" or event in _OUTSIDE):
            watch.note(event, arguments)


@contextmanager
def watching() -> Iterator[Opened]:
    """Note the files that are opened meanwhile."""
    _Hook.install()
    before, _Hook.watch = _Hook.watch, Opened()
    try:
        yield _Hook.watch
    finally:
        _Hook.watch = before


def taken(paths: Iterable[str | Path]) -> Fingerprint:
    """The fingerprint of files, and of all that lies in folders."""
    found: Fingerprint = {}
    for path in paths:
        found[os.fspath(path)] = _of(path)
        if os.path.isdir(path):  # noqa: PTH112
            found |= _inside(os.fspath(path))
    return found


def _inside(folder: str) -> Fingerprint:
    found: Fingerprint = {}
    folders: Fingerprint = {}
    for place, names, files in os.walk(folder, followlinks=True):
        folders |= {path: _of(path) for name in names if (path := os.path.join(place, name))}  # noqa: PTH118
        found |= {path: _of(path) for name in files if (path := os.path.join(place, name))}  # noqa: PTH118
        if len(found) > MAX_ENTRIES:
            return folders
    return found | folders


def _of(path: str | Path) -> tuple[int, int, int, int] | None:
    try:
        stat = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino
