"""
Models on disk: safetensors files, write-once, named by the digest of their content.

A checkpoint that exists is complete: it is written elsewhere in the folder, fsynced, and renamed
into place, so whatever kills the writer leaves the old state or the new. This module owns the file
format; which versions are kept is the caller's. No Redis here.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3
from safetensors import SafetensorError
from safetensors.numpy import save_file

from fl_queue.common import files
from fl_queue.common.paths import below
from fl_queue.common.safetensors_head import safetensors_head
from fl_queue.common.schema import Invalid
from fl_queue.errors import CheckpointError, MessageError
from fl_queue.protocol import identifiers, tensor_layout
from fl_queue.protocol.base_part import BasePart, read_shape
from fl_queue.protocol.manifest import Kind, Manifest, TensorSpec
from fl_queue.protocol.tensor_layout import Bytes, Tensor

_SUFFIX = ".safetensors"
#: What a file is written in begins with this; `prune` removes what a killed writer left of it.
WRITING = ".writing-"
#: A writer that was killed leaves its folder behind; none that lives takes that long.
_ABANDONED_S = 3600.0
#: dtype of a version's tensor -> its name in a safetensors file; a base part's are such names.
_DTYPES = {"float32": "F32", "int64": "I64"}
_BASE = "base-"

#: Tensors of a file, in its order: those of a version, or of a run's base part.
Layout = Manifest | BasePart


def checkpoint_folder(state_dir: Path, run: str) -> Path:
    """Folder of a run's checkpoints, below a machine's state folder."""
    return below(state_dir / "checkpoints", run)


def file_name(digest: str, layout: Layout | None = None) -> str:
    """Name of the file of a model, or of a base part, with that digest. Args: ``layout``: of its tensors."""
    return f"{_BASE if isinstance(layout, BasePart) else ''}{digest}{_SUFFIX}"


class UncommittedCheckpoint:
    """A model that has been written and has no name yet; made by ``writing``."""

    def __init__(self, path: Path, file: Path, digest: str, start: int) -> None:
        self._path, self._file, self.digest = path, file, digest
        self._mapped = files.Mapped(file)
        #: The body as it is on disk.
        self.view = self._mapped.view[start:]

    def sync(self) -> None:
        """
        Have it on disk for good; ``keep`` then has little to wait for.

        Raises:
            CheckpointError: It cannot be written.
        """
        with _write_errors(self._file):
            files.sync(self._file)

    def keep(self) -> Path:
        """
        Give it its name: ``<folder>/<digest>.safetensors``, on disk for good.

        Raises:
            CheckpointError: It cannot be written.
        """
        with _write_errors(self._path):
            files.put_in_place(self._file, self._path)
        return self._path


class Writer:
    """A model being written, piece by piece; made by ``writing``."""

    def __init__(
        self, folder: Path, file: Path, manifest: Layout, metadata: Mapping[str, str]
    ) -> None:
        self._folder, self._file, self._manifest, self._metadata = folder, file, manifest, metadata
        self._digest, self._written = blake3(manifest.head), 0
        self._out = files.create(file)
        self._start = self._out.write(_head(manifest, metadata, "0" * 64))

    def write(self, piece: Bytes | Tensor) -> None:
        """
        Add the next part of the body.

        Raises:
            CheckpointError: It cannot be written (disk full, permissions).
        """
        with _write_errors(self._folder):
            view = tensor_layout.as_bytes(piece)
            self._digest.update(view)
            self._written += self._out.write(view)

    def finish(self) -> UncommittedCheckpoint:
        """
        The written bytes, whole.

        Raises:
            CheckpointError: It cannot be written.
            MessageError: The body is not of the manifest's size.
        """
        nbytes = self._manifest.nbytes
        if self._written != nbytes:
            raise MessageError(f"body has {self._written} bytes, the manifest's has {nbytes}")
        digest = self._digest.hexdigest()
        with _write_errors(self._folder), self._out as out:
            out.seek(0)
            out.write(_head(self._manifest, self._metadata, digest))
        path = self._folder / file_name(digest, self._manifest)
        return UncommittedCheckpoint(path, self._file, digest, self._start)

    def close(self) -> None:
        """Give up the file, if it is not finished."""
        self._out.close()


@contextmanager
def writing(folder: Path, manifest: Layout, metadata: Mapping[str, str]) -> Iterator[Writer]:
    """
    Write a model piece by piece, so that it need not be in memory; removed again unless it is kept.

    safetensors' own writer wants all tensors at once. The file has the tensors in the manifest's
    order without gaps, so its data is the body.

    Args:
        folder: Made when it does not exist.
        manifest: Layout of the body.
        metadata: Texts for the file's header; ``digest`` is added.

    Raises:
        CheckpointError: It cannot be written (disk full, permissions); nothing is left behind.
    """
    with _write_errors(folder):
        files.folder(folder)
        temporary = tempfile.TemporaryDirectory(prefix=WRITING, dir=folder)
    with temporary as name:
        with _write_errors(folder):
            writer = Writer(folder, Path(name) / "model", manifest, metadata)
        with closing(writer):
            yield writer


@contextmanager
def drafted(
    folder: Path, manifest: Layout, pieces: Iterable[Bytes | Tensor], metadata: Mapping[str, str]
) -> Iterator[UncommittedCheckpoint]:
    """
    Write a model from its pieces; arguments and errors are those of ``writing``.

    Raises:
        MessageError: The body is not of the manifest's size.
    """
    with writing(folder, manifest, metadata) as writer:
        for piece in pieces:
            writer.write(piece)
        yield writer.finish()


def _head(manifest: Layout, metadata: Mapping[str, str], digest: str) -> bytes:
    """Header before the tensors in a safetensors file; as long for every digest."""
    return safetensors_head({"__metadata__": {**metadata, "digest": digest}} | _entries(manifest))


def _entries(manifest: Layout) -> dict[str, Any]:
    return {
        spec.name: {
            "dtype": _DTYPES.get(spec.dtype, spec.dtype),
            "shape": list(spec.shape),
            "data_offsets": [offset, offset + spec.nbytes],
        }
        for spec, offset in manifest.offsets()
    }


def _layout(head: memoryview) -> object:
    """The entries of a file's tensors; None when this is no file of ours."""
    try:
        entries = json.loads(bytes(head))
    except ValueError:
        return None
    return {name: entries[name] for name in entries if name != "__metadata__"}


def stored_layout(path: Path) -> Manifest | None:
    """The tensors of a file as its head lists them, floats as parameters; None: it is no file of ours."""
    try:
        with path.open("rb") as file:
            nbytes = int.from_bytes(file.read(8), "little")
            if nbytes > os.fstat(file.fileno()).st_size:
                return None
            entries: Any = json.loads(file.read(nbytes))
        entries.pop("__metadata__", None)
        kinds: dict[str, Kind] = {"F32": "parameter", "I64": "integer_buffer"}
        return Manifest(
            tuple(
                TensorSpec(name, read_shape(entry["shape"]), kinds[entry["dtype"]])
                for name, entry in sorted(entries.items())
            )
        )
    except (OSError, ValueError, TypeError, AttributeError, KeyError, Invalid, MessageError):
        return None


def write(
    folder: Path, digest: str, manifest: Layout, body: Bytes, metadata: Mapping[str, str]
) -> Path:
    """
    Write a model version, or a base part, that is in memory, unless it is there already.

    Args:
        folder: Made when it does not exist.
        digest: That of the version or base part, which names the file.
        manifest: Layout of the body.
        body: The model.
        metadata: Texts for the file's header; not part of what the digest names.

    Returns:
        ``<folder>/<digest>.safetensors`` (``base-<digest>.safetensors``), on disk for good.

    Raises:
        CheckpointError: It cannot be written (disk full, permissions), or ``digest`` is not that of
            the body; nothing is left behind.
        MessageError: The body is not of the manifest's size.
    """
    path = _path(folder, digest, manifest)
    if _is_complete(path, manifest):
        return path
    with drafted(folder, manifest, [body], metadata) as draft:
        if draft.digest != digest:
            raise CheckpointError(str(path), "what is to be written does not have that digest")
        return draft.keep()


def open_body(folder: Path, digest: str, manifest: Layout) -> Body:
    """
    The body of a model version or a base part on disk, its digest verified; read as it is looked at.

    Raises:
        CheckpointError: It is missing, damaged, or of another manifest.
    """
    path = _path(folder, digest, manifest)
    try:
        mapped = files.Mapped(path)
    except FileNotFoundError as exc:
        raise CheckpointError(str(path), "is missing", public=True) from exc
    except OSError as exc:
        raise CheckpointError(str(path), f"cannot be read: {exc}", public="cannot be read") from exc
    start = 8 + int.from_bytes(mapped.view[:8], "little")
    if _layout(mapped.view[8:start]) != _entries(manifest):
        raise CheckpointError(
            str(path), "is damaged, or holds other tensors than the run's model", public=True
        )
    body = Body(mapped, mapped.view[start:])
    found = tensor_layout.pieces_digest([manifest.head, body.view])
    if len(body.view) != manifest.nbytes or found != digest:
        raise CheckpointError(
            str(path), "is damaged: its content does not have that digest", public=True
        )
    body.unload()
    return body


@dataclass(frozen=True)
class Body:
    """A model's body in a file. Args: ``view``: its bytes, read-only."""

    mapped: files.Mapped
    view: memoryview

    def unload(self) -> None:
        """Take its bytes out of memory until they are looked at again."""
        self.mapped.unload()


def read(folder: Path, digest: str, manifest: Layout) -> bytearray:
    """
    Read a model version back into memory, as a body, and verify its digest.

    Raises:
        CheckpointError: It is missing, damaged, or of another manifest.
    """
    return bytearray(open_body(folder, digest, manifest).view)


def named_tensors(body: Bytes, manifest: Manifest) -> dict[str, Tensor]:
    """
    A model's arrays by name, aliases among them: what ``load_state_dict`` wants; views of the body.

    Raises:
        MessageError: The body is not of the manifest's size.
    """
    tensors = tensor_layout.views(manifest, body)
    return tensors | {name: tensors[of] for name, of in manifest.aliases.items()}


def export(body: Bytes, manifest: Manifest, path: Path, metadata: Mapping[str, str]) -> None:
    """
    Write a model for use elsewhere: a file whose tensors ``load_state_dict`` takes strictly.

    Aliases (tied weights) are written out as tensors of their own. An existing file is replaced.

    Raises:
        CheckpointError: It cannot be written; the old file, if any, is as it was.
        MessageError: The body is not of the manifest's size.
    """
    tensors = named_tensors(body, manifest)
    # A rename would put a file in the place of a device such as /dev/stdout.
    if path.exists() and not path.is_file():
        raise CheckpointError(str(path), "is not a file; name a file to write to")
    with _write_errors(path):
        _replace(path, tensors, metadata)


def prune(folder: Path, keep: set[str]) -> None:
    """
    Delete the checkpoints whose digests are not in ``keep``, and what killed writers left.

    Other files in the folder are not touched. A missing folder has nothing to prune.

    Raises:
        CheckpointError: A file cannot be deleted.
    """
    if not folder.is_dir():
        return
    with _write_errors(folder):
        for file in folder.glob(f"*{_SUFFIX}"):
            if identifiers.is_digest(file.stem) and file.stem not in keep:
                file.unlink(missing_ok=True)
        for left in folder.glob(f"{WRITING}*"):
            if time.time() - left.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(left, ignore_errors=True)


def keep_base(folder: Path, base: BasePart) -> None:
    """
    Delete the base parts of a run's folder but one: those whose version 0 was not committed.

    Raises:
        CheckpointError: A file cannot be deleted.
    """
    with _write_errors(folder):
        for file in folder.glob(f"{_BASE}*{_SUFFIX}"):
            digest = file.stem.removeprefix(_BASE)
            if identifiers.is_digest(digest) and digest != base.digest:
                file.unlink(missing_ok=True)


def _path(folder: Path, digest: str, layout: Layout) -> Path:
    # Digests come from Redis: one such as ../../x must not name a file.
    if not identifiers.is_digest(digest):
        raise CheckpointError(str(folder), f"{digest[:80]!r} is not a digest")
    return below(folder, file_name(digest, layout))


def _is_complete(path: Path, manifest: Layout) -> bool:
    try:
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            return os.fstat(file.fileno()).st_size == 8 + header_bytes + manifest.nbytes
    except OSError:
        return False


def _replace(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a file and put it in place atomically; on failure the folder is as it was."""
    with tempfile.TemporaryDirectory(prefix=WRITING, dir=path.parent) as writing:
        file = Path(writing) / path.name
        # safetensors makes files that only their owner can read; let the umask decide instead.
        with file.open("xb") as made:
            mode = stat.S_IMODE(os.fstat(made.fileno()).st_mode)
        save_file(dict(tensors), file, dict(metadata))
        file.chmod(mode)
        files.put_in_place(file, path)


@contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        raise CheckpointError(
            str(path), f"{reason}; free space or allow writing in its folder, then start again"
        ) from exc
