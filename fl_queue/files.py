"""
Files that are there whole, or not at all, whatever kills their writer.
"""

from __future__ import annotations

import mmap
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fl_queue.errors import DataError

UNFINISHED = ".tmp"


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """
    Write a file that appears under its name when the block ends, and not at all when it fails.

    Its folder is made. A killed process leaves the old state or the new; a machine that loses power
    may leave a damaged file, so its reader has to check it.

    Raises:
        OSError: It cannot be written; nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}{UNFINISHED}")
    try:
        with temporary.open("wb") as file:
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
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}{UNFINISHED}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    descriptor = os.open(temporary, flags, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)  # A rename would replace what another process has put there.
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def write(path: Path, content: bytes | memoryview) -> None:
    """
    Write a file whole, for people or for another process; an existing one is replaced.

    Raises:
        DataError: It cannot be written, or is no file; nothing is left behind.
    """
    # A rename would put a file in the place of a device such as /dev/stdout.
    if path.exists() and not path.is_file():
        raise DataError(str(path), "is not a file; name a file to write to")
    try:
        with written_whole(path) as file:
            file.write(content)
    except OSError as exc:
        raise DataError(str(path), f"cannot be written: {exc.strerror or exc}") from exc


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
    Write a file and have it on disk for good; its folder is made.

    Raises:
        OSError: It cannot be written; nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}{UNFINISHED}")
    try:
        with temporary.open("wb") as file:
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
