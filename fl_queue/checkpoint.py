"""
Models on disk: safetensors files, write-once, named by the digest of their content.

A checkpoint that exists is complete: it is written elsewhere in the folder, fsynced, and renamed
into place, so whatever kills the writer leaves the old state or the new. This module owns the file
format; which versions are kept is the caller's. No Redis here.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fl_queue import blob, files
from fl_queue.blob import Bytes, Tensor
from fl_queue.errors import BlobError, CheckpointError, DataError
from fl_queue.records import Manifest

_SUFFIX = ".safetensors"
#: What a file is written in begins with this; `prune` removes what a killed writer left of it.
WRITING = ".writing-"
#: A writer that was killed leaves its folder behind; none that lives takes that long.
_ABANDONED_S = 3600.0
_DIGEST = re.compile(r"[0-9a-f]{64}")


def is_digest(text: str) -> bool:
    """Whether ``text`` may name a model: 64 hexadecimal digits."""
    return _DIGEST.fullmatch(text) is not None


def file_name(digest: str) -> str:
    """Name of the file of a model with that digest."""
    return f"{digest}{_SUFFIX}"


def write(
    folder: Path, digest: str, manifest: Manifest, body: Bytes, metadata: Mapping[str, str]
) -> Path:
    """
    Write a model version, unless it is there already.

    The tensors are written from the body itself: no copy of the model is made.

    Args:
        folder: Made when it does not exist.
        digest: BLAKE3 of ``body``, which names the file.
        manifest: Layout of the body.
        body: The model.
        metadata: Texts for the file's header; not part of what the digest names.

    Returns:
        ``<folder>/<digest>.safetensors``, on disk for good.

    Raises:
        CheckpointError: It cannot be written (disk full, permissions); nothing is left behind.
        BlobError: The body is not of the manifest's size.
    """
    path = _path(folder, digest)
    if _is_complete(path, manifest):
        return path
    tensors = blob.views(manifest, body)
    with _write_errors(path):
        folder.mkdir(parents=True, exist_ok=True)
        _replace(path, tensors, metadata)
    return path


def read(folder: Path, digest: str, manifest: Manifest) -> bytearray:
    """
    Read a model version back, as a body, and verify its digest.

    Holds one copy of the model and one tensor at a time.

    Raises:
        CheckpointError: It is missing, damaged, or of another manifest.
    """
    path = _path(folder, digest)
    body = bytearray(manifest.nbytes)
    try:
        with safe_open(path, framework="np") as file:
            if set(file.keys()) != {spec.name for spec in manifest.tensors}:
                raise CheckpointError(str(path), "holds other tensors than the run's model")
            for spec, offset in manifest.offsets():
                tensor = blob.matching(spec, {spec.name: file.get_tensor(spec.name)})
                body[offset : offset + spec.nbytes] = tensor.tobytes()
    except FileNotFoundError as exc:
        raise CheckpointError(str(path), "is missing") from exc
    except (OSError, SafetensorError, BlobError, TypeError) as exc:
        raise CheckpointError(str(path), f"cannot be read: {exc}") from exc
    if blob.body_digest(body) != digest:
        raise CheckpointError(str(path), "is damaged: its content does not have that digest")
    return body


def read_tensors(path: Path) -> dict[str, Tensor]:
    """
    The tensors of any safetensors file, with the dtypes it has; for ``model.initial``.

    Raises:
        DataError: Names the file and what is wrong with it.
    """
    try:
        with safe_open(path, framework="np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as exc:
        raise DataError(str(path), "no such file") from exc
    except TypeError as exc:  # numpy has no such dtype, as bfloat16
        raise DataError(str(path), f"{exc}; convert its tensors to float32") from exc
    except (OSError, SafetensorError) as exc:
        raise DataError(str(path), f"is not a readable safetensors file: {exc}") from exc


def export(body: Bytes, manifest: Manifest, path: Path, metadata: Mapping[str, str]) -> None:
    """
    Write a model for use elsewhere: a file whose tensors ``load_state_dict`` takes strictly.

    Aliases (tied weights) are written out as tensors of their own. An existing file is replaced.

    Raises:
        CheckpointError: It cannot be written; the old file, if any, is as it was.
        BlobError: The body is not of the manifest's size.
    """
    tensors = blob.views(manifest, body)
    tensors |= {name: tensors[of] for name, of in manifest.aliases.items()}
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
            if is_digest(file.stem) and file.stem not in keep:
                file.unlink(missing_ok=True)
        for left in folder.glob(f"{WRITING}*"):
            if time.time() - left.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(left, ignore_errors=True)


def _path(folder: Path, digest: str) -> Path:
    # Digests come from Redis: one such as ../../x must not name a file.
    if not is_digest(digest):
        raise CheckpointError(str(folder), f"{digest[:80]!r} is not a digest")
    return folder / file_name(digest)


def _is_complete(path: Path, manifest: Manifest) -> bool:
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
