"""Room on this machine's disk, asked for before the work whose result has to fit there."""

from __future__ import annotations

import os
from pathlib import Path

from fl_queue.errors import NoRoom


def check(folder: Path, nbytes: int, what: str) -> None:
    """
    Check that a file of some size fits on the file system of a folder.

    Args:
        folder: It need not be there yet.
        what: For the message.

    Raises:
        NoRoom: It does not; the message has the bytes to free.
    """
    lacking = nbytes - _free(folder)
    if lacking > 0:
        megabytes = -(-lacking // 1_000_000)
        raise NoRoom(
            str(folder),
            f"no room on the disk for {what} ({nbytes:,} bytes); free {megabytes:,} MB there, or use --state-dir",
            public=True,
        )


def _free(folder: Path) -> float:
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    found = os.statvfs(there)
    # Some network file systems do not report their size.
    return found.f_bavail * found.f_frsize if found.f_blocks else float("inf")
