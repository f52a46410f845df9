"""
A client's finished updates on its own disk, until it learns that their rounds have ended.

A file is written before anything is pushed, under the update's token, and is what a new attempt
pushes instead of training again. No training here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from fl_queue import blob, faults, files
from fl_queue.blob import Header
from fl_queue.errors import BlobError, DataError, StoreUnavailable
from fl_queue.store import Store

_SUFFIX = ".update"
LONGEST_WAIT_S = 5.0
#: Chunks nobody removed expire by themselves; missing ones are asked for again.
CHUNK_LIFETIME_S = 24 * 3600


def path_of(folder: Path, run: str, number: int, client: str) -> Path:
    """File of one client's update of one round."""
    return folder / f"{client}_{run}_{number}{_SUFFIX}"


def write(folder: Path, header: Header, body: bytes | bytearray) -> Path:
    """
    Keep an update, durably: it is there whole, or not at all.

    Raises:
        DataError: It cannot be written (disk full, permissions).
    """
    path = path_of(folder, header.run, header.round, header.client)
    try:
        files.write_durably(path, [blob.pack(header, body or None)])
    except OSError as exc:
        raise DataError(
            str(path), f"cannot be written ({exc.strerror}); free space there, or use --state-dir"
        ) from exc
    return path


def read(path: Path) -> tuple[Header, memoryview] | None:
    """A kept update; None when there is none, or when the disk has damaged it (it is removed then)."""
    try:
        element = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        header, body = blob.unpack(element, max_body_bytes=len(element))
        blob.check_body(header, body)
    except BlobError:
        path.unlink(missing_ok=True)
        return None
    return header, body


def push(
    store: Store,
    header: Header,
    body: memoryview,
    inline_bytes: int,
    chunk_bytes: int,
    ended: Callable[[], bool],
) -> bool:
    """
    Push an update, waiting out outages of the data server: chunks first, then the element.

    Args:
        inline_bytes: Bodies up to this size travel in the element itself.
        ended: Whether its round has ended; asked before each attempt.

    Returns:
        Whether it was pushed; False when its round ended first.
    """
    wait_s = 0.2
    while not _ended(ended):
        try:
            _push_once(store, header, body, inline_bytes, chunk_bytes)
            return True
        except StoreUnavailable:
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)
    return False


def _push_once(
    store: Store, header: Header, body: memoryview, inline_bytes: int, chunk_bytes: int
) -> None:
    if len(body) <= inline_bytes:
        store.data.push(header.run, blob.pack(header, body if len(body) else None))
        return
    pieces = (body[piece] for piece in blob.chunk_slices(len(body), chunk_bytes))
    store.data.put_chunks(header.run, header.body_digest, pieces, CHUNK_LIFETIME_S)
    faults.reach("chunks.pushed")
    store.data.push(header.run, blob.pack(replace(header, chunk_bytes=chunk_bytes), None))


def _ended(ended: Callable[[], bool]) -> bool:
    try:
        return ended()
    except StoreUnavailable:
        return False


def remove_unfinished(folder: Path, client: str) -> None:
    """Remove what a killed job of this client was writing; only its next job may call this."""
    for path in folder.glob(f"{client}_*{files.UNFINISHED}"):
        path.unlink(missing_ok=True)


def sweep(folder: Path, client: str, has_ended: Callable[[str, int], bool]) -> int:
    """
    Remove the updates whose rounds have ended.

    Args:
        client: Whose updates these are; another client's in the same folder are left alone.
        has_ended: ``(run id, round) -> bool``.

    Returns:
        How many are left.
    """
    left = 0
    for path in sorted(folder.glob(f"{client}_*{_SUFFIX}")):
        _, run, number = path.name.removesuffix(_SUFFIX).split("_")
        if has_ended(run, int(number)):
            path.unlink(missing_ok=True)
        else:
            left += 1
    return left
