"""
Accepted updates kept on the aggregator's disk (``model.keep_updates``), so that rounds can be verified.

One file an update, named by client and digest of the body, in a folder for each round. What was taken but
not accepted is removed when its round has ended. One that was not signed is in the form of the wire with
its body inline. A signed one is

    b"FLQK" | enrolment bytes, u32 LE | enrolment, JSON | envelope and header as they came | body

so that its signature can be checked for as long as it is kept, also when its client has another key by then:
the enrolment has the key, and is itself signed by the operator.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from fl_queue.common import files
from fl_queue.common.paths import below
from fl_queue.common.safe_json import is_count
from fl_queue.errors import CheckpointError, DataError, MessageError
from fl_queue.protocol import message, signing
from fl_queue.protocol.header import Header
from fl_queue.protocol.records import Enrolment
from fl_queue.protocol.signing import SignedMessage
from fl_queue.protocol.tensor_layout import Bytes

_SUFFIX = ".update"
_TRANSCRIPT = "transcript.json"
_SIGNED = b"FLQK"
#: Bytes before the enrolment.
_PREFIX_BYTES = len(_SIGNED) + 4


class Proof(NamedTuple):
    """
    Proof of the sender of an update.

    Args:
        sealed: Its envelope, with the element as it came.
        enrolment: The client's, with whose key it is signed.
    """

    sealed: SignedMessage
    enrolment: Enrolment


class ArchivedUpdate(NamedTuple):
    """A kept update. ``proof``: None: it was not signed, or kept before signatures were."""

    header: Header
    body: memoryview
    proof: Proof | None


def write(
    state_dir: Path, header: Header, body: Bytes, number: int, proof: Proof | None = None
) -> None:
    """
    Keep an update.

    Args:
        number: Round that merges it; an asynchronous one also merges those of jobs of earlier rounds.
        proof: Of one that is signed.

    Raises:
        CheckpointError: It cannot be written (disk full, permissions).
    """
    path = _path(state_dir, header.run, number, header.client, header.body_digest)
    try:
        with files.write_atomically(path, durable=True) as file:
            file.writelines(_pieces(header, body, proof))
    except OSError as exc:
        raise CheckpointError(str(path), f"{exc.strerror}; free space there") from exc


def _pieces(header: Header, body: Bytes, proof: Proof | None) -> list[Bytes]:
    if proof is None:
        return [message.pack(replace(header, chunk_bytes=0), body)]
    enrolment = proof.enrolment.to_json().encode()
    size = len(enrolment).to_bytes(4, "little")
    return [_SIGNED, size, enrolment, signing.head_of(proof.sealed), body]


def read(state_dir: Path, run: str, number: int, client: str, digest: str) -> ArchivedUpdate:
    """
    A client's kept update, its digest checked; of its signature nothing, see ``verify``.

    Raises:
        DataError: It is not there, or damaged; names the file.
    """
    path = _path(state_dir, run, number, client, digest)
    try:
        found = _parsed(memoryview(path.read_bytes()))
        message.check_body(found.header, found.body)
    except FileNotFoundError as exc:
        raise DataError(str(path), "no such kept update") from exc
    except (OSError, MessageError) as exc:
        raise DataError(str(path), f"the kept update is damaged: {exc}") from exc
    if (found.header.client, found.header.body_digest) != (client, digest):
        raise DataError(str(path), "holds another update than the one in its name")
    return found


def _parsed(raw: memoryview) -> ArchivedUpdate:
    """Raises MessageError."""
    if bytes(raw[: len(_SIGNED)]) != _SIGNED:
        return ArchivedUpdate(*message.unpack(raw, max_body_bytes=len(raw)), None)
    start = _PREFIX_BYTES + int.from_bytes(raw[len(_SIGNED) : _PREFIX_BYTES], "little")
    enrolment = Enrolment.from_json(bytes(raw[_PREFIX_BYTES:start]))
    sealed = signing.opened(raw[start:])
    if sealed is None:
        raise MessageError("its envelope is not there")
    header, body = message.unpack(sealed.element, max_body_bytes=len(raw), is_whole=True)
    return ArchivedUpdate(header, body, Proof(sealed, enrolment))


def write_transcript(state_dir: Path, run: str, number: int, raw: bytes) -> None:
    """
    Keep what takes the masks off the sum of a round's masked updates.

    Raises:
        CheckpointError: It cannot be written.
    """
    path = _folder(state_dir, run, number) / _TRANSCRIPT
    try:
        with files.write_atomically(path, durable=True) as file:
            file.write(raw)
    except OSError as exc:
        raise CheckpointError(str(path), f"{exc.strerror}; free space there") from exc


def read_transcript(state_dir: Path, run: str, number: int) -> bytes:
    """The same, unchecked. Raises DataError when it is not there."""
    path = _folder(state_dir, run, number) / _TRANSCRIPT
    try:
        return path.read_bytes()
    except OSError as exc:
        raise DataError(str(path), "no transcript of the secure round is kept") from exc


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
