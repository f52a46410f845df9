"""
Files that are there whole, or not at all, whatever kills their writer; and for their owner alone.

Everything of fl-queue's own is born readable by its owner only, whatever the umask: a mode that is
set afterwards comes too late for whoever has opened the file by then. A temporary name cannot be
guessed, and nothing that lies at a name already is followed or written to. What people ask for with
``--output`` has the mode that their umask gives.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, cast

from fl_queue.errors import DataError, LocalStorageError

UNFINISHED = ".tmp"
#: Modes of what is fl-queue's own.
PRIVATE, PRIVATE_FOLDER = 0o600, 0o700
#: Modes of what people asked for, before their umask.
_SHARED, _SHARED_FOLDER = 0o666, 0o777
#: What of each mode must not be given: for a process that writes nothing but its own.
PRIVATE_UMASK = 0o077


def folder(path: Path, mode: int = PRIVATE_FOLDER) -> None:
    """
    Make a folder and what is missing above it; one that is there stays as it is.

    Raises:
        OSError: It cannot be made, or is no folder.
    """
    # Path.mkdir(parents=True) gives parents the mode of the umask.
    missing = []
    for each in (path, *path.parents):
        if each.is_dir():
            break
        missing.append(each)
    for each in reversed(missing):
        with suppress(FileExistsError):  # Somebody else has just made it.
            each.mkdir(mode)
    if not path.is_dir():
        raise NotADirectoryError(20, "Not a directory", str(path))


def create(path: Path, mode: int = PRIVATE) -> BinaryIO:
    """
    A new file to write and read, open; never one that is there, nor what a link of that name leads to.

    Raises:
        OSError: There is something of that name, or it cannot be made.
    """
    return _opened(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode, "w+b")


def fresh(path: Path) -> BinaryIO:
    """A new file in place of one that is there. Raises OSError."""
    path.unlink(missing_ok=True)
    return create(path)


def appended(path: Path, is_private: bool = True) -> BinaryIO:
    """A file to add to and to read, made when it is missing; a link is not followed. Raises OSError."""
    mode = PRIVATE if is_private else _SHARED
    return _opened(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, mode, "a+b")


def lock_descriptor(path: Path, mode: int = PRIVATE) -> int:
    """A file to hold a lock on, made when it is missing; a link is not followed. Raises OSError."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, mode)


@contextmanager
def locked(path: Path, is_private: bool = True) -> Iterator[None]:
    """
    One at a time; the kernel ends the turn of a process that is killed. The file's folder is made.

    Raises:
        OSError: The file cannot be opened.
    """
    folder(path.parent, PRIVATE_FOLDER if is_private else _SHARED_FOLDER)
    lock = lock_descriptor(path, PRIVATE if is_private else _SHARED)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _opened(path: Path, flags: int, mode: int, kind: str) -> BinaryIO:
    return cast(
        BinaryIO, os.fdopen(os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode), kind)
    )


@contextmanager
def written_whole(path: Path, is_private: bool = True) -> Iterator[BinaryIO]:
    """
    Write a file that appears under its name when the block ends, and not at all when it fails.

    Its folder is made. A killed process leaves the old state or the new; a machine that loses power
    may leave a damaged file, so its reader has to check it.

    Args:
        is_private: Whether it is for its owner alone, and not for whom the umask lets.

    Raises:
        OSError: It cannot be written; nothing is left behind.
    """
    folder(path.parent, PRIVATE_FOLDER if is_private else _SHARED_FOLDER)
    temporary = _unfinished(path)
    try:
        with create(temporary, PRIVATE if is_private else _SHARED) as file:
            yield file
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def create_private(path: Path, content: bytes) -> None:
    """
    Make a file that only its owner reads, whole and on disk for good; its folder is made.

    Raises:
        FileExistsError: Something is there already; it stays as it is.
        OSError: It cannot be written; nothing is left behind.
    """
    folder(path.parent)
    temporary = _unfinished(path)
    try:
        with create(temporary) as file:
            _give_to_owner_of(path.parent, file)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)  # A rename would replace what another process has put there.
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def _give_to_owner_of(folder: Path, file: BinaryIO) -> None:
    """What root writes: the account that owns the folder runs the worker that has to read it."""
    if os.geteuid() == 0:
        owner = folder.stat()
        os.fchown(file.fileno(), owner.st_uid, owner.st_gid)


def _unfinished(path: Path) -> Path:
    """A name beside a file that nobody can guess, so that nobody can have put something there."""
    return path.with_name(f"{path.name}.{secrets.token_hex(8)}{UNFINISHED}")


def write(path: Path, content: bytes | memoryview) -> None:
    """
    Write a file that a user asked for, with the mode of their umask; an existing one is replaced.

    Raises:
        DataError: It cannot be written, or is no file; nothing is left behind.
    """
    # A rename would put a file in the place of a device such as /dev/stdout.
    if path.exists() and not path.is_file():
        raise DataError(str(path), "is not a file; name a file to write to")
    try:
        with written_whole(path, is_private=False) as file:
            file.write(content)
    except OSError as exc:
        raise DataError(str(path), f"cannot be written: {exc.strerror or exc}") from exc


def write_private(path: Path, content: bytes) -> None:
    """
    Write a file for this account's processes alone; an existing one is replaced.

    Raises:
        LocalStorageError: It cannot be written; nothing is left behind.
    """
    try:
        with written_whole(path) as file:
            file.write(content)
    except OSError as exc:
        raise LocalStorageError(str(path), f"cannot be written: {exc.strerror or exc}") from exc


class Mapped:
    """
    A file's bytes, read when they are looked at; ``view`` is read-only.

    Raises:
        OSError: It cannot be opened (FileNotFoundError when there is none).
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            # An empty file cannot be mapped.
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else None
        self.view = memoryview(self._map if self._map is not None else b"")

    def unload(self) -> None:
        """Take the bytes out of this process's memory until they are looked at again."""
        if self._map is not None:
            self._map.madvise(mmap.MADV_DONTNEED)


def write_durably(path: Path, pieces: Iterable[bytes | bytearray | memoryview]) -> None:
    """
    Write a file for its owner alone and have it on disk for good; its folder is made.

    Raises:
        OSError: It cannot be written; nothing is left behind.
    """
    folder(path.parent)
    temporary = _unfinished(path)
    try:
        with create(temporary) as file:
            for piece in pieces:
                file.write(piece)
        put_in_place(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def put_in_place(file: Path, path: Path) -> None:
    """
    Give a finished file of the same file system its name, and have it on disk for good.

    Raises:
        OSError: It cannot be done; what was at ``path`` is as it was.
    """
    sync(file)
    os.replace(file, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Have a file, or the entries of a folder, on disk for good."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
