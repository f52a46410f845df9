"""
Atomic file writes, file locks and private modes.

A file of fl-queue is created readable by its owner only, whatever the umask: a mode that is set later comes
too late for a process that has opened the file by then. Temporary names are random, and no symbolic link is
followed. A file that a user asked for with ``--output`` has the mode of their umask.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, cast

from fl_queue.errors import DataError, LocalStorageError

UNFINISHED = ".tmp"
#: Modes of the files and folders of fl-queue.
PRIVATE, PRIVATE_FOLDER = 0o600, 0o700
#: Modes of what a user asked for; the umask takes bits away.
SHARED, SHARED_FOLDER = 0o666, 0o777
#: Umask of a process that writes private files only.
PRIVATE_UMASK = 0o077
_POLL_S = 0.02


def folder(path: Path, mode: int = PRIVATE_FOLDER) -> None:
    """
    Make a folder and its missing parents; an existing one keeps its mode.

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
        with suppress(FileExistsError):  # Another process has just made it.
            each.mkdir(mode)
    if not path.is_dir():
        raise NotADirectoryError(20, "Not a directory", str(path))


def create(path: Path, mode: int = PRIVATE) -> BinaryIO:
    """
    Create a file to write and read; an existing file or link is never opened.

    Raises:
        OSError: The name is taken, or the file cannot be made.
    """
    return _opened(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode, "w+b")


def fresh(path: Path) -> BinaryIO:
    """Create a file in place of an existing one. Raises OSError."""
    path.unlink(missing_ok=True)
    return create(path)


def appended(path: Path, is_private: bool = True) -> BinaryIO:
    """A file to append to and to read, made when it is missing; a link is not followed. Raises OSError."""
    mode = PRIVATE if is_private else SHARED
    return _opened(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, mode, "a+b")


def acquire_lock(path: Path, timeout_s: float | None = None, mode: int = PRIVATE) -> int:
    """
    Lock a file, which is made when it is missing, for this process and those that inherit the descriptor.

    The kernel releases the lock when the last of them closes it or dies. That is why this is ``flock`` and
    not the package ``filelock``, whose locks are not inherited and are waited for by polling.

    Args:
        timeout_s: Longest wait, seconds; None: as long as it takes.

    Returns:
        The descriptor; closing it releases the lock.

    Raises:
        TimeoutError: Another process holds the lock.
        OSError: The file cannot be opened.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        if timeout_s is None:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            return descriptor
        deadline = time.monotonic() + timeout_s
        while not _try_lock(descriptor):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{path} is locked by another process")
            time.sleep(_POLL_S)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def file_lock(path: Path, mode: int = PRIVATE, *, timeout_s: float | None = None) -> Iterator[None]:
    """
    Hold the lock of a file during a block; the file and its folder are made.

    Args:
        timeout_s: Longest wait, seconds; None: as long as it takes.

    Raises:
        TimeoutError: Another process holds the lock.
        OSError: The file cannot be opened.
    """
    folder(path.parent, _folder_mode(mode))
    descriptor = acquire_lock(path, timeout_s, mode)
    try:
        yield
    finally:
        os.close(descriptor)


def _folder_mode(mode: int) -> int:
    return PRIVATE_FOLDER if mode == PRIVATE else SHARED_FOLDER


def _opened(path: Path, flags: int, mode: int, kind: str) -> BinaryIO:
    return cast(
        BinaryIO, os.fdopen(os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode), kind)
    )


@contextmanager
def write_atomically(
    path: Path, *, durable: bool = False, mode: int = PRIVATE
) -> Iterator[BinaryIO]:
    """
    Write a file that gets its name when the block ends, and is removed when the block raises.

    Its folder is made. After the death of the process the old file or the new one is there. After a power
    failure the file may be damaged unless it is ``durable``; its reader has to check it.

    Args:
        durable: Whether the file and its name are on disk (fsync) when the block has ended.
        mode: ``PRIVATE`` or ``SHARED``.

    Raises:
        OSError: The file cannot be written.
    """
    folder(path.parent, _folder_mode(mode))
    temporary = _unfinished(path)
    try:
        with create(temporary, mode) as file:
            yield file
        put_in_place(temporary, path, durable=durable)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def create_private(path: Path, content: bytes) -> None:
    """
    Create a private file, whole and on disk (fsync); its folder is made.

    Raises:
        FileExistsError: The name is taken; the existing file is unchanged.
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
    """Give a file that root writes to the owner of its folder, whose worker reads it."""
    if os.geteuid() == 0:
        owner = folder.stat()
        os.fchown(file.fileno(), owner.st_uid, owner.st_gid)


def _unfinished(path: Path) -> Path:
    """A random name beside a file: no other process can have created it in advance."""
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
        with write_atomically(path, mode=SHARED) as file:
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
        with write_atomically(path) as file:
            file.write(content)
    except OSError as exc:
        raise LocalStorageError(str(path), f"cannot be written: {exc.strerror or exc}") from exc


class Mapped:
    """
    A file mapped into memory; ``view`` is read-only, unless it is private.

    Args:
        in_use: Whether ``remove_unused`` leaves the file while this object lives.
        private: Whether ``view`` can be written: a page that is written is copied for this process, and the
            file stays as it is.

    Raises:
        OSError: It cannot be opened (FileNotFoundError when there is none).
    """

    def __init__(self, path: Path, *, in_use: bool = False, private: bool = False) -> None:
        access = mmap.ACCESS_COPY if private else mmap.ACCESS_READ
        with path.open("rb") as file:
            if in_use:
                # The map has a copy of the descriptor, so the lock is released with the map.
                fcntl.flock(file.fileno(), fcntl.LOCK_SH)
            size, names = (found := os.fstat(file.fileno())).st_size, found.st_nlink
            if in_use and not names:  # Removed between the two.
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
            # An empty file cannot be mapped.
            self._map = mmap.mmap(file.fileno(), 0, access=access) if size else None
        self.view = memoryview(self._map if self._map is not None else b"")

    def unload(self) -> None:
        """Free the mapped pages; the next access reads them again."""
        if self._map is not None:
            self._map.madvise(mmap.MADV_DONTNEED)


def remove_unused(path: Path) -> None:
    """Remove a file, unless there is none or a process has it in use (``Mapped``)."""
    with suppress(FileNotFoundError), path.open("r+b") as file:
        if _try_lock(file.fileno()):
            path.unlink()


def put_in_place(file: Path, path: Path, *, durable: bool = True) -> None:
    """
    Rename a finished file of the same file system; an existing one is replaced.

    Args:
        durable: Whether the file and its name are on disk (fsync) when this returns.

    Raises:
        OSError: It cannot be done; the file at ``path`` is unchanged.
    """
    if durable:
        sync(file)
    file.replace(path)
    if durable:
        sync(path.parent)


def sync(path: Path) -> None:
    """Write a file, or the entries of a folder, to disk (fsync)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
