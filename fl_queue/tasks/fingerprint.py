"""
Fingerprint of what a site's data are read from: names, sizes and times of files, and what was opened and listed.

Python's own opening of files is seen (numpy, pandas, PIL and torch included), that of libraries in Rust and C is not; so
all of a data folder belongs to the fingerprint unless the task names the files. No Redis here.
"""

from __future__ import annotations

import glob
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

#: Path -> size, times of content and of the entry, inode; None: nothing is there.
Fingerprint = dict[str, tuple[int, int, int, int] | None]

#: Of a folder with more entries than that the folders alone are looked at.
MAX_ENTRIES = 100_000
#: Events by which reading depends on more than files.
_OUTSIDE = frozenset(
    {"socket.connect", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork"}
)
_LISTINGS = frozenset({"os.listdir", "os.scandir"})
_FILES = frozenset({"open", "sqlite3.connect"})
_EVENTS = frozenset({*_OUTSIDE, *_LISTINGS, *_FILES, "glob.glob"})
#: Python's own files: what changes there is code, which is not read again either.
_CODE = (".py", ".pyc", ".so")
#: Of the system, and with times of their own.
_SYSTEM = ("/proc/", "/sys/")
#: Where Python looks for modules.
_IMPORTING = "<frozen importlib"


class Opened:
    """
    Files that were opened for reading, and folders that were listed.

    Args:
        apart: Threads that have nothing to do with it.
        paths: Absolute paths of files -> as they were found first.
        folders: Of listed folders; an entry that is added there later might be read, too.
        is_open: Whether something else than a file was asked: a socket, a program.
    """

    def __init__(self, apart: Iterable[threading.Thread] = ()) -> None:
        self.paths: Fingerprint = {}
        self.folders: Fingerprint = {}
        self.is_open = False
        # The identity of a thread that has ended may be that of another one.
        self._apart = {thread.ident for thread in apart if thread.is_alive()}
        self._apart.discard(threading.get_ident())

    def note(self, event: str, arguments: tuple[Any, ...], caller: str) -> None:
        """Note an event of Python's audit hook. Args: ``caller``: file of the code that has caused it."""
        if threading.get_ident() in self._apart:
            return
        if event in _OUTSIDE:
            self.is_open = True
        elif event in _LISTINGS:
            if not caller.startswith(_IMPORTING):
                self._add(self.folders, arguments[0])
        elif event == "glob.glob":
            # Of a pattern the folders are listed.
            if not glob.has_magic(arguments[0]):
                self._add(self.paths, arguments[0])
        elif event != "open" or _is_read(arguments[2]):
            self._add(self.paths, arguments[0])

    def have_changed(self, since: Fingerprint) -> bool:
        """Whether one was another one when it was read. Args: ``since``: of all of them, now."""
        # What is gone, such as a file for the time of reading, would not be read.
        return any(
            since.get(path) not in (None, first)
            for path, first in (*self.paths.items(), *self.folders.items())
        )

    def _add(self, found: Fingerprint, what: Any) -> None:
        if (path := _path_of(what)) is None or path.startswith(_SYSTEM):
            return
        if path not in found and not path.endswith(_CODE):
            found[path] = _of(path)


def _path_of(what: Any) -> str | None:
    if isinstance(what, int):
        with suppress(OSError):
            return os.readlink(f"/proc/self/fd/{what}")  # noqa: PTH115
        return None
    if what is not None and not isinstance(what, (str, bytes, os.PathLike)):
        return None
    return os.path.abspath(os.fsdecode(what or "."))  # noqa: PTH100


def _is_read(flags: Any) -> bool:
    return not isinstance(flags, int) or flags & os.O_ACCMODE == os.O_RDONLY


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
        if watch is not None and event in _EVENTS:
            watch.note(event, arguments, sys._getframe(1).f_code.co_filename)


@contextmanager
def watching(apart: Iterable[threading.Thread] = ()) -> Iterator[Opened]:
    """Note what is opened and listed meanwhile, by all threads. Args: as of ``Opened``."""
    _Hook.install()
    before, _Hook.watch = _Hook.watch, Opened(apart)
    try:
        yield _Hook.watch
    finally:
        _Hook.watch = before


def taken(paths: Iterable[str | Path], listed: Iterable[str] = ()) -> Fingerprint:
    """
    The fingerprint of files, and of all that lies in folders.

    Args:
        listed: Folders of which the entries count, and not what lies below those.
    """
    found: Fingerprint = {}
    for path in paths:
        found[os.fspath(path)] = _of(path)
        if os.path.isdir(path):  # noqa: PTH112
            found |= _inside(os.fspath(path))
    for folder in listed:
        found |= _entries(folder)
    return found


def _entries(folder: str) -> Fingerprint:
    try:
        names = os.listdir(folder)  # noqa: PTH208
    except OSError:
        names = []
    if len(names) > MAX_ENTRIES:
        names = []
    return {folder: _of(folder)} | {path: _of(path) for name in names if (path := os.path.join(folder, name))}  # noqa: PTH118  # fmt: skip


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
