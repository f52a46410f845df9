"""
Files that are there whole, or not at all, whatever kills their writer.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

UNFINISHED = ".tmp"


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
