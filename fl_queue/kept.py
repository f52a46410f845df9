"""
Accepted updates kept on the aggregator's disk (``model.keep_updates``), so that rounds can be verified.

One file an update, in the form of the wire with its body inline, named by client and digest of the
body, in a folder for each round. What was taken but not accepted is removed when its round has ended.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from fl_queue import blob, files
from fl_queue.blob import Bytes
from fl_queue.errors import BlobError, CheckpointError, DataError
from fl_queue.header import Header
from fl_queue.paths import below
from fl_queue.plain import is_count

_SUFFIX = ".update"


def write(state_dir: Path, header: Header, body: Bytes, number: int) -> None:
    """
    Keep an update.

    Args:
        number: Round that merges it; an asynchronous one also merges those of jobs of earlier rounds.

    Raises:
        CheckpointError: It cannot be written (disk full, permissions).
    """
    path = _path(state_dir, header.run, number, header.client, header.body_digest)
    try:
        files.write_durably(path, [blob.pack(replace(header, chunk_bytes=0), body)])
    except OSError as exc:
        raise CheckpointError(str(path), f"{exc.strerror}; free space there") from exc


def read(
    state_dir: Path, run: str, number: int, client: str, digest: str
) -> tuple[Header, memoryview]:
    """
    A client's kept update, its digest checked.

    Raises:
        DataError: It is not there, or damaged; names the file.
    """
    path = _path(state_dir, run, number, client, digest)
    try:
        element = path.read_bytes()
        header, body = blob.unpack(element, max_body_bytes=len(element))
        blob.check_body(header, body)
    except FileNotFoundError as exc:
        raise DataError(str(path), "no such kept update") from exc
    except (OSError, BlobError) as exc:
        raise DataError(str(path), f"the kept update is damaged: {exc}") from exc
    if (header.client, header.body_digest) != (client, digest):
        raise DataError(str(path), "holds another update than its name says")
    return header, body


def keep_only(state_dir: Path, run: str, number: int, accepted: Mapping[str, str]) -> None:
    """Remove the updates that a round was not made of. Args: ``accepted``: client -> digest."""
    stay = {_path(state_dir, run, number, *item).name for item in accepted.items()}
    for path in _folder(state_dir, run, number).glob(f"*{_SUFFIX}"):
        if path.name not in stay:
            path.unlink(missing_ok=True)


def prune(state_dir: Path, run: str, keep: Collection[int]) -> None:
    """Remove the updates of the rounds that are not in ``keep``."""
    parent = below(state_dir / "updates", run)
    for folder in parent.iterdir() if parent.is_dir() else ():
        if is_count(folder.name) and int(folder.name) not in keep:
            shutil.rmtree(folder, ignore_errors=True)


def forget(state_dir: Path, run: str) -> None:
    """Remove all updates of a run."""
    shutil.rmtree(below(state_dir / "updates", run), ignore_errors=True)


def _folder(state_dir: Path, run: str, number: int) -> Path:
    return below(state_dir / "updates", run, str(number))


def _path(state_dir: Path, run: str, number: int, client: str, digest: str) -> Path:
    return below(_folder(state_dir, run, number), f"{client}_{digest}{_SUFFIX}")
