"""
Models that a host has fetched: one download for all its clients, and none for a version it has.

A file is named by the digest of its content and appears whole. Downloads of a run take turns; one
that was cut off goes on where it stopped. Of a run the newest ones stay, and those that a process has in use:
a worker names a file to its training process, which opens it by itself.

Base parts lie beside the runs' folders: runs with one base share its file, which stays while one of them is
not over, and for a day after its last use: the next run is often one of the same model. An empty file in a
run's folder marks that it uses it; marks and sweeps take turns. Downloads of one base part take turns, and
hold up nothing else.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from fl_queue.common import disk_space, failpoints, files
from fl_queue.common.files import Mapped
from fl_queue.common.paths import below
from fl_queue.errors import DataError, DigestMismatch, LocalStorageError
from fl_queue.protocol import identifiers, tensor_layout
from fl_queue.protocol.base_part import BasePart, missing
from fl_queue.store import Store, keyspace

_PART = ".part"
_LOCK = ".lock"
#: The model being trained from, and the one before it, which a slow client may still use.
_KEPT = 2
#: Folder of the base parts: no run id has an underscore. And the begin of a mark in a run's folder.
_BASES, _MARK = "base_parts", "base-"
#: Folder of the locks of downloads of base parts, by digest.
_BASE_LOCKS = "base_locks"
_UNUSED_S = 24 * 3600.0


def cache_folder(state_dir: Path) -> Path:
    """Folder of the models that a machine has fetched, by run."""
    return state_dir / "cache"


def base_path(folder: Path, base: BasePart) -> Path:
    """File of a base part in a cache, whether it is there or not."""
    return below(folder, _BASES, base.digest)


def hold_base(folder: Path, run: str, base: BasePart) -> Path | None:
    """
    Keep the file of a base part for a run, whose sweep then leaves it.

    Its content is not checked: who reads it does that, and ``HostCache.fetch_base`` repairs it.

    Args:
        folder: The cache.
        run: Run id.

    Returns:
        The file; None: it is not there.

    Raises:
        LocalStorageError: The folder cannot be written.
    """
    path = base_path(folder, base)
    if not path.exists():
        return None
    with _storage_errors(path):
        _mark(folder, run, base)
        try:
            os.utime(path)
        except FileNotFoundError:  # Swept, or removed as damaged, between the two looks.
            return None
    return path


def _mark(folder: Path, run: str, base: BasePart) -> None:
    """Note that a run uses a base part. Not during a sweep: that would remove what it has found unused."""
    with files.file_lock(folder / _BASES / _LOCK):
        mark = below(folder, run, f"{_MARK}{base.digest}")
        files.folder(mark.parent)
        files.fresh(mark).close()


@dataclass(frozen=True)
class HostCache:
    """
    Models of one run that this host has fetched.

    Args:
        store: Connections to both servers.
        folder: This host's cache.
        run: Run id.
        chunk_bytes: Size of a chunk on the data server.
        source: In place of ``run``, under what name the chunks lie there.
    """

    store: Store
    folder: Path
    run: str
    chunk_bytes: int
    source: str = ""

    def path(self, digest: str) -> Path:
        """
        File of a model, whether it is there or not.

        Raises:
            DataError: This is no digest.
        """
        if not identifiers.is_digest(digest):
            # It comes from Redis: one such as ../../x must not name a file.
            raise DataError(str(self.folder), f"{digest[:80]!r} is not a digest")
        return below(self.folder, self.run, digest)

    def fetch(self, digest: str, nbytes: int, beside: int = 0) -> Mapped:
        """
        A model's body as a file of this host, its digest checked; it stays there while what is returned lives.

        Args:
            nbytes: Size of the body.
            beside: How many other bodies belong to a version; they are kept as long.

        Raises:
            ContentMissing: The data server does not have it (any more).
            DataError: The folder cannot be written, or this is no digest.
            StoreUnavailable: The connection broke; called again it goes on from there.
        """
        path = self.path(digest)
        with _storage_errors(path):
            body = _open(path, digest, nbytes)
            if body is not None:
                return body
            with files.file_lock(path.parent / _LOCK):
                body = _open(path, digest, nbytes)
                if body is None:
                    self._download(path, nbytes)
                    body = Mapped(path, in_use=True)
                _keep_newest(path.parent, digest, _KEPT * (1 + beside))
            return body

    def fetch_base(self, base: BasePart) -> Mapped:
        """
        The body of the run's base part as a file of this host, which other runs may share.

        Raises:
            As ``fetch``; NoRoom: it does not fit on the disk; DataError: it is not published.
        """
        if not base.is_published:
            raise missing(base)
        path = base_path(self.folder, base)
        with _storage_errors(path):
            _mark(self.folder, self.run, base)
        # Another lock than the sweep's, which must not wait for a download.
        lock = below(self.folder, _BASE_LOCKS, base.digest)
        with _storage_errors(path), files.file_lock(lock):
            body = _open(path, base.digest, base.nbytes, base.head)
            if body is None:
                left = base.nbytes - _size(path.with_name(path.name + _PART))
                disk_space.check(path.parent, left, "the base part of the model")
                self._download(path, base.nbytes, base.head)
                body = Mapped(path)
                failpoints.failpoint("base.fetched")
            os.utime(path)
            return body

    def has(self, digest: str) -> bool:
        """Whether this host has a model."""
        return identifiers.is_digest(digest) and below(self.folder, self.run, digest).exists()

    def _download(self, path: Path, nbytes: int, head: bytes = b"") -> None:
        digest, part = path.name, path.with_name(path.name + _PART)
        name = keyspace.model_blob(self.source or self.run, digest)
        hasher = blake3(head)
        with files.appended(part) as file:
            done = min(file.tell(), nbytes) // self.chunk_bytes  # codespell:ignore tell
            file.truncate(done * self.chunk_bytes)
            file.seek(0)
            for _ in range(done):
                hasher.update(file.read(self.chunk_bytes))
            for piece in self.store.data.chunks.iterate(name, nbytes, self.chunk_bytes, first=done):
                hasher.update(piece)
                file.write(piece)
        if hasher.hexdigest() != digest:
            part.unlink()
            raise DigestMismatch(digest)
        files.put_in_place(part, path, durable=False)


def sweep(folder: Path, is_over: Callable[[str], bool]) -> None:
    """Remove the models of runs that are over. Args: ``is_over``: run id -> bool."""
    for run in folder.iterdir() if folder.is_dir() else ():
        # Folders of other names are not fl-queue's.
        if identifiers.is_run_id(run.name) and is_over(run.name):
            shutil.rmtree(run, ignore_errors=True)
    _sweep_bases(folder)


def _sweep_bases(folder: Path) -> None:
    """Remove the base parts that no run on this host uses any more."""
    if not (folder / _BASES).is_dir():
        return
    # Without the lock a run could begin to use one between the two looks. Another process that has it sweeps,
    # or marks a base part as used: the next sweep comes soon.
    with suppress(TimeoutError), files.file_lock(folder / _BASES / _LOCK, timeout_s=0):
        used = {mark.name.removeprefix(_MARK) for mark in folder.glob(f"*/{_MARK}*")}
        for file in (folder / _BASES).iterdir():
            digest = file.name.removesuffix(_PART)
            if not identifiers.is_digest(digest) or digest in used:
                continue
            # A download that ended meanwhile has given its part another name.
            with suppress(FileNotFoundError):
                if time.time() - file.stat().st_mtime > _UNUSED_S:
                    file.unlink()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


@contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        reason = f"cannot be written ({exc.strerror}); free space there, or use --state-dir"
        raise LocalStorageError(
            str(path), reason, public="a model cannot be written to the cache; check the disk"
        ) from exc


def _open(path: Path, digest: str, nbytes: int, head: bytes = b"") -> Mapped | None:
    """The file, if its content has the digest of its name: a machine that lost power may have damaged it."""
    try:
        body = Mapped(path, in_use=True)
    except FileNotFoundError:
        return None
    if len(body.view) == nbytes and tensor_layout.pieces_digest([head, body.view]) == digest:
        return body
    path.unlink(missing_ok=True)
    return None


def _keep_newest(folder: Path, digest: str, count: int) -> None:
    # Partial downloads count too: this process holds the lock, so no download is in progress.
    there = [
        file
        for file in folder.iterdir()
        if file.suffix == _PART or identifiers.is_digest(file.name)
    ]
    # The clock of a file system is coarse: the new file may seem as old as another one.
    there.sort(key=lambda file: (file.name == digest, file.stat().st_mtime_ns))
    # A worker that has an old one in use has perhaps named it to its training process, which opens it later.
    for old in there[:-count]:
        files.remove_unused(old)
