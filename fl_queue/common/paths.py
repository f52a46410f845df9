"""
Paths below a folder, made with names that other processes chose.

Run ids, client ids and digests come from Redis and from the headers of updates. A process that can write there
must not decide where a machine reads, writes or deletes: every such name is joined here. No Redis here.
"""

from __future__ import annotations

import os
from pathlib import Path

from fl_queue.errors import DataError

#: What file systems take for one name.
_MAX_BYTES = 255


def below(folder: Path, *parts: str) -> Path:
    """
    The path of ``parts`` below a folder, each of them the name of one file or folder.

    Nothing has to be there. ``folder`` itself may be a link; what lies below it may be one that stays below.

    Raises:
        DataError: A part is empty, ``.``, ``..``, or holds a separator or NUL; or a link leads out of the folder.
    """
    path = folder
    for part in parts:
        if not _is_one_name(part):
            raise DataError(str(folder), f"{part[:80]!r} is not the name of a file or folder in it")
        path = path / part
    # Resolved even where nothing is a link: a link may stand at any level.
    inside, found = os.path.realpath(folder), os.path.realpath(path)
    if os.path.commonpath([inside, found]) != inside:
        raise DataError(str(path), f"is a link that leads out of {folder}; remove it")
    return path


def _is_one_name(part: str) -> bool:
    if part in ("", os.curdir, os.pardir) or any(mark in part for mark in ("/", "\\", "\0")):
        return False
    try:
        return len(os.fsencode(part)) <= _MAX_BYTES
    except UnicodeEncodeError:
        return False
