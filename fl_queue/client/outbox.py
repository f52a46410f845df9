"""
A client's finished updates on its own disk, until it learns that their rounds have ended.

A file is written before anything is pushed, under the update's token; a new attempt pushes it instead of
training again. The system writes it to disk when it sees fit: a process that is killed loses nothing, and a
machine that loses power trains again, to the same bits. No training here.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from blake3 import blake3

from fl_queue.common import failpoints, files
from fl_queue.common.paths import below
from fl_queue.common.safe_json import is_count
from fl_queue.errors import DataError, MessageError, StoreUnavailable, Trouble
from fl_queue.protocol import identifiers, message, tensor_layout
from fl_queue.protocol.header import Header
from fl_queue.protocol.tensor_layout import Bytes
from fl_queue.store import ADMITTED_S, Store, keyspace
from fl_queue.store.admission import permission

log = logging.getLogger(__name__)

SUFFIX = ".update"
#: Of a secure round: the update in clear, which is masked before it leaves, and what is sent besides.
TRAINED, KEYS, CONFIRM, UNMASK = ".trained", ".keys", ".confirm", ".unmask"
#: All files of one client and round, in the order in which they are removed.
_ALL = (TRAINED, KEYS, CONFIRM, UNMASK)
#: Suffixes of the files beside an update that waits for the site's approval; see ``approval``.
WAITING, DECISION = ".waiting", ".decision"
FIRST_WAIT_S = 0.2
MAX_WAIT_S = 5.0
#: Chunks that no process removed expire by themselves; missing ones are asked for again.
CHUNK_LIFETIME_S = 24 * 3600
#: A line below this rate is reported as slow: too slow for a chunk of 4 MB within a server's timeout.
_SLOW_BYTES_PER_S = 140_000
#: A shorter transfer is not reported.
_SLOW_AFTER_S = 20.0
#: Chunks after which the permission to send is extended.
_EXTEND_EVERY = 8


def path_of(folder: Path, run: str, number: int, client: str, suffix: str = SUFFIX) -> Path:
    """File of one client's update of one round. Args: ``suffix``: of another of its files."""
    return below(folder, f"{client}_{run}_{number}{suffix}")


def answer_beside(path: Path) -> Path:
    """The file that a decision is about: the update in clear, where it is masked before it leaves."""
    trained = path.with_suffix(TRAINED)
    return trained if trained.exists() else path.with_suffix(SUFFIX)


class OutboxName(NamedTuple):
    """The parts of a file's name in an outbox."""

    client: str
    run: str
    number: int


def named(path: Path) -> OutboxName | None:
    """
    Client, run and round of a file, by its name; None: fl-queue did not name it, and it stays as it is.

    Args:
        path: A client's update, or a file beside it.
    """
    parts = path.name.removesuffix(path.suffix).split("_")
    if len(parts) == 3 and is_count(parts[2]):
        client, run, number = parts[0], parts[1], int(parts[2])
        if identifiers.is_name(client) and identifiers.is_run_id(run):
            return OutboxName(client, run, number)
    _warn_foreign(path)
    return None


@cache
def _warn_foreign(path: Path) -> None:
    """Log an unknown file, once in a process."""
    log.warning(
        "%s has no name that fl-queue gives: it is left alone; remove it, or put it elsewhere", path
    )


def write(
    folder: Path,
    header: Header,
    pieces: Iterable[Bytes | Any] = (),
    suffix: str = SUFFIX,
    durable: bool = False,
) -> Path:
    """
    Keep an update, atomically. Its body is never in memory whole.

    Args:
        header: Its body's digest is filled in here.
        pieces: The body's ``body_bytes`` bytes, or arrays of them, in order.
        suffix: Of the file.
        durable: Whether it is on the disk (fsync) when the call returns.

    Raises:
        MessageError: The header cannot be packed, or the pieces are more or fewer bytes.
        DataError: It cannot be written (disk full, permissions).
    """
    path = path_of(folder, header.run, header.round, header.client, suffix)
    try:
        with files.write_atomically(path, durable=durable) as file:
            file.write(message.pack_head(header))
            digest, written = blake3(), 0
            for piece in pieces:
                view = tensor_layout.as_bytes(piece)
                digest.update(view)
                written += file.write(view)
            if written != header.body_bytes:
                raise MessageError(f"body has {written} bytes, its header has {header.body_bytes}")
            file.seek(0)
            file.write(message.pack_head(replace(header, body_digest=digest.hexdigest())))
    except OSError as exc:
        raise DataError(
            str(path),
            f"cannot be written ({exc.strerror}); free space there, or use --state-dir",
            public="an answer cannot be written to the outbox; check the disk",
        ) from exc
    return path


def read(path: Path, check: bool = True) -> tuple[Header, memoryview] | None:
    """
    A kept update, its body still on disk; None when there is none.

    One that the disk has damaged is removed.

    Args:
        check: Whether to compute the body's digest; not needed for a file that was just written.
    """
    try:
        element = files.Mapped(path).view
    except FileNotFoundError:
        return None
    try:
        header, body = message.unpack(element, max_body_bytes=len(element))
        if check:
            message.check_body(header, body)
    except MessageError:
        path.unlink(missing_ok=True)
        return None
    return header, body


@dataclass(frozen=True)
class SendOptions:
    """
    Settings for sending a client's updates.

    Args:
        inline_bytes: Bodies up to this size travel in the element itself.
        chunk_bytes: Size of a chunk of a larger body.
        unmerged_bytes: Updates of the run that may lie on the server at a time; 0: any.
        seal: Signs the element; the same bytes each time.
        rivals: The clients that send updates for this round, this one among them.
    """

    inline_bytes: int
    chunk_bytes: int
    unmerged_bytes: int = 0
    seal: Callable[[bytes], bytes] = bytes
    rivals: Sequence[str] = ()


def push(
    store: Store,
    header: Header,
    body: memoryview,
    options: SendOptions,
    ended: Callable[[], bool],
    on_trouble: Callable[[StoreUnavailable], None] = lambda trouble: None,
) -> bool:
    """
    Push an update, waiting out outages of the data server: chunks first, then the element.

    Chunks that have arrived are not sent again. While the server is full, it waits, too.

    Args:
        ended: Whether its round has ended; asked before each attempt.
        on_trouble: Called with the reason when the data server cannot be used, or the line to it is slow.

    Returns:
        Whether it was pushed; False when its round ended first.
    """
    wait_s, again = FIRST_WAIT_S, False
    while not _ended(ended):
        try:
            permit = _SendPermit(store, header, options)
            if permit.ask(ADMITTED_S):
                line = _Line(store, len(body), on_trouble)
                _push_once(permit, body, options, again, line)
                return True
        except StoreUnavailable as exc:
            again = True
            on_trouble(exc)
        # Many clients may wait for the same server: they do not all try again at the same time.
        time.sleep(wait_s * random.uniform(0.5, 1.0))
        wait_s = min(2 * wait_s, MAX_WAIT_S)
    return False


def element(header: Header, body: memoryview, inline_bytes: int, chunk_bytes: int) -> bytes:
    """
    The element of an update: its header, and its body unless that is large and travels in chunks.

    Raises:
        MessageError: A field of the header is out of range.
    """
    if len(body) > inline_bytes:
        return message.pack(replace(header, chunk_bytes=chunk_bytes), None)
    return message.pack(header, body if len(body) else None)


class _SendPermit:
    """Permission to send an update. Args: as of ``push``."""

    def __init__(self, store: Store, header: Header, options: SendOptions) -> None:
        self.store, self.header = store, header
        self._others = [client for client in options.rivals if client != header.client]
        self._max_bytes = 0
        if options.unmerged_bytes and self._others:
            room = store.data.admission.room(options.unmerged_bytes)
            # There is no need to ask where all updates of the round would fit.
            self._max_bytes = room if len(options.rivals) * header.body_bytes > room else 0

    def ask(self, lifetime_s: int) -> bool:
        """Whether it may be sent; asked again, the permission is extended."""
        header = self.header
        return not self._max_bytes or self.store.data.admission.admit(
            header.run,
            header.client,
            permission(header.token, header.body_bytes),
            self._max_bytes,
            self._others,
            lifetime_s,
            header.round,
        )


class _Line:
    """Speed of the line to the data server. Args: as of ``push``; ``nbytes``: of the update."""

    def __init__(
        self, store: Store, nbytes: int, on_slow: Callable[[StoreUnavailable], None]
    ) -> None:
        self._url, self._nbytes, self._on_slow = store.servers.blob_url, nbytes, on_slow
        self._began_at = time.monotonic()

    def look(self, arrived: int, coming: int) -> float:
        """
        Report a slow line.

        Args:
            arrived: Bytes of the update so far.
            coming: Bytes that are sent next.

        Returns:
            Seconds that the next bytes will need, where the line is slow; else 0.
        """
        seconds = time.monotonic() - self._began_at
        if not arrived or seconds < _SLOW_AFTER_S or arrived / seconds > _SLOW_BYTES_PER_S:
            return 0.0
        minutes = self._nbytes / (arrived / seconds) / 60
        self._on_slow(
            StoreUnavailable(
                self._url,
                f"the line is slow, {8 * arrived / seconds / 1000:.0f} kbit/s: an update of"
                f" {self._nbytes / 1e6:.1f} MB takes about {minutes:.0f} minutes; see update.codec",
                Trouble.silent,
            )
        )
        return coming * seconds / arrived


def _push_once(
    permit: _SendPermit,
    body: memoryview,
    options: SendOptions,
    again: bool,
    line: _Line,
) -> None:
    store, header, chunk_bytes = permit.store, permit.header, options.chunk_bytes

    def pieces() -> Iterator[memoryview]:
        for index, piece in enumerate(tensor_layout.chunk_slices(len(body), chunk_bytes)):
            # The last piece but one has arrived before another one is asked for.
            slow_s = line.look(max(0, index - 1) * chunk_bytes, 2 * chunk_bytes)
            if slow_s or index % _EXTEND_EVERY == _EXTEND_EVERY - 1:
                permit.ask(ADMITTED_S + int(slow_s))
            yield body[piece]

    sealed = options.seal(element(header, body, options.inline_bytes, chunk_bytes))
    if len(body) <= options.inline_bytes:
        permit.ask(CHUNK_LIFETIME_S)
        store.data.results.push(header.run, sealed)
        return
    store.data.chunks.put(
        keyspace.update_blob(header.client, header.run, header.body_digest),
        pieces(),
        CHUNK_LIFETIME_S,
        skip_present=again,
    )
    failpoints.failpoint("chunks.pushed")
    # Before the element is there: afterwards the aggregator may have ended it already.
    permit.ask(CHUNK_LIFETIME_S)
    store.data.results.push(header.run, sealed)


def _ended(ended: Callable[[], bool]) -> bool:
    try:
        return ended()
    except StoreUnavailable:
        return False


def remove_unfinished(folder: Path, client: str, age_s: float = 0.0) -> None:
    """
    Remove the unfinished files of a killed job of this client; only its next job may call this.

    Args:
        client: Or a pattern of several clients; then only files of that age are removed.
        age_s: Seconds since such a file was last written to.
    """
    for path in folder.glob(f"{client}_*{files.UNFINISHED}"):
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime >= age_s:
                path.unlink()


def sweep(folder: Path, client: str, has_ended: Callable[[str, int, str], bool]) -> int:
    """
    Remove the updates that are not wanted any more.

    Args:
        client: The client, or a pattern of several; other files in the folder stay.
        has_ended: ``(run id, round, client) -> bool``.

    Returns:
        How many are left.
    """
    left = 0
    there = {
        path.with_suffix(SUFFIX)
        for suffix in (*_ALL, SUFFIX)
        for path in folder.glob(f"{client}_*{suffix}")
    }
    for path in sorted(there):
        found = named(path)
        if found is None:
            continue
        if has_ended(found.run, found.number, found.client):
            for suffix in (WAITING, DECISION, *_ALL, SUFFIX):
                path.with_suffix(suffix).unlink(missing_ok=True)
        else:
            left += 1
    return left
