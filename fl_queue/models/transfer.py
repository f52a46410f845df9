"""
Where model versions are: chunks on the data server, checkpoints on the aggregator's disk.

Both are named by digest and written once; the same version is the same bytes in both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fl_queue.common.files import Mapped
from fl_queue.common.paths import below
from fl_queue.errors import (
    CheckpointError,
    ContentMissing,
    DataError,
    DigestMismatch,
    ModelMismatch,
    UnknownVersion,
)
from fl_queue.models import checkpoint, host_cache
from fl_queue.models.checkpoint import Body
from fl_queue.protocol import message
from fl_queue.protocol.codecs import codec
from fl_queue.protocol.records import Manifest
from fl_queue.store import RunState, Store, keyspace
from fl_queue.strategies.base import state_manifest

#: Initial models lie under this in place of a run id, until the run's first job has read them.
INITIAL = "initial"
INITIAL_LIFETIME_S = 7 * 24 * 3600
#: What a version can be exported as; by suffix, where the suffix says it.
FORMATS = ("safetensors", "torch", "onnx")
_SUFFIXES = {".onnx": "onnx", ".pt": "torch", ".pth": "torch"}


def format_of(path: Path) -> str:
    """One of ``FORMATS``, by the suffix of a file; safetensors unless it is that of another."""
    return _SUFFIXES.get(path.suffix.lower(), "safetensors")


def checkpoint_folder(state_dir: Path, run: str) -> Path:
    """Folder of a run's checkpoints."""
    return below(state_dir / "checkpoints", run)


def cache_folder(state_dir: Path) -> Path:
    """Folder of the models this machine has fetched, by run."""
    return state_dir / "cache"


def publish(store: Store, run: str, digest: str, body: message.Bytes, chunk_bytes: int) -> None:
    """Store a model's chunks on the data server; they stay until they are dropped."""
    view = memoryview(body)
    store.data.chunks.put(
        keyspace.model_blob(run, digest),
        (view[piece] for piece in message.chunk_slices(len(body), chunk_bytes)),
        None,
        insist=True,
    )


def publish_encoded(
    store: Store, run: str, body: message.Bytes, manifest: Manifest, encoding: str, chunk_bytes: int
) -> str:
    """
    Store what clients fetch in place of a version, encoded while it is sent.

    A function of the version: whoever has that can make it again.

    Returns:
        Digest of the encoded body; empty, and nothing is stored, when the codec changes nothing.
    """
    if encoding == "float32":
        return ""
    # Once for the digest, which the chunks are named by, and once more: it is never in memory whole.
    digest = message.pieces_digest(codec.encoded_pieces(encoding, manifest, body))
    pieces = codec.encoded_pieces(encoding, manifest, body)
    chunks = message.rechunked(pieces, chunk_bytes)
    store.data.chunks.put(keyspace.model_blob(run, digest), chunks, None, insist=True)
    return digest


def fetch(store: Store, run: str, digest: str, manifest: Manifest, chunk_bytes: int) -> bytearray:
    """
    A model's body from the data server, its digest checked.

    Raises:
        ContentMissing: It is not there (any more).
    """
    body = store.data.chunks.get(keyspace.model_blob(run, digest), manifest.nbytes, chunk_bytes)
    if message.body_digest(body) != digest:
        raise DigestMismatch(digest)
    return body


def restore(
    store: Store,
    run: str,
    digest: str,
    manifest: Manifest,
    chunk_bytes: int,
    state_dir: Path,
    download: str = "",
    encoding: str = "float32",
) -> bool:
    """
    Bring a model back to the data server from its checkpoint, if its chunks are not there.

    Args:
        download: Digest of its encoded body, which is brought back too; empty: it has none.
        encoding: The codec of that.

    Returns:
        Whether it had to be brought back.

    Raises:
        CheckpointError: The checkpoint is not there, or not what its name says.
    """

    def is_lost(digest: str, nbytes: int) -> bool:
        count = message.chunk_count(nbytes, chunk_bytes)
        return bool(store.data.chunks.are_missing(keyspace.model_blob(run, digest), count))

    is_model_lost = is_lost(digest, manifest.nbytes)
    is_download_lost = download and is_lost(download, codec.encoded_nbytes(encoding, manifest))
    if not (is_model_lost or is_download_lost):
        return False
    body = checkpoint.open_body(checkpoint_folder(state_dir, run), digest, manifest)
    if is_model_lost:
        publish(store, run, digest, body.view, chunk_bytes)
    if is_download_lost:
        publish_encoded(store, run, body.view, manifest, encoding, chunk_bytes)
    return True


def base_body(
    store: Store, run: str, digest: str, manifest: Manifest, chunk_bytes: int, state_dir: Path
) -> Mapped | Body:
    """
    A version's body for the aggregator, on disk: its checkpoint, else fetched from the data server.

    Raises:
        ContentMissing, CheckpointError: It is in neither.
    """
    try:
        return checkpoint.open_body(checkpoint_folder(state_dir, run), digest, manifest)
    except CheckpointError:
        return host_cache.fetch(
            store, cache_folder(state_dir), run, digest, manifest.nbytes, chunk_bytes
        )


def body_of_version(
    store: Store, run: str, version: int, manifest: Manifest, chunk_bytes: int, state_dir: Path
) -> Mapped | Body:
    """
    The same of a version by its number.

    Raises:
        ContentMissing, CheckpointError: It is in neither.
    """
    digest = store.control.versions.get(run, version).get("digest", "")
    if not digest:
        raise CheckpointError(f"version {version}", "is not recorded (any more)", public=True)
    return base_body(store, run, digest, manifest, chunk_bytes, state_dir)


def state_arrays(
    store: Store,
    run: str,
    digests: Mapping[str, str],
    manifest: Manifest,
    chunk_bytes: int,
    state_dir: Path,
) -> dict[str, dict[str, np.ndarray]]:
    """
    What a strategy keeps with a version, as views of files.

    Args:
        digests: Name -> digest.
        manifest: The model's.

    Raises:
        ContentMissing, CheckpointError: Neither a checkpoint nor the data server has it.
    """
    layout = state_manifest(manifest)
    return {
        name: message.views(
            layout, base_body(store, run, digest, layout, chunk_bytes, state_dir).view
        )
        for name, digest in digests.items()
    }


def load_version(
    store: Store, run: str, version: int, chunk_bytes: int, state_dir: Path
) -> tuple[Manifest, bytearray]:
    """
    A version's manifest and body, from the checkpoint of this machine or the data server.

    Raises:
        UnknownVersion: There is no such version, or its content is nowhere to be found.
    """
    versions = store.control.versions.all(run)
    manifest = store.control.versions.manifest(run)
    if version not in versions or manifest is None:
        there = f"0 to {max(versions)}" if versions else "none yet"
        raise UnknownVersion(run, version, f"does not exist (versions: {there})")
    digest = versions[version]["digest"]
    folder = checkpoint_folder(state_dir, run)
    if (folder / checkpoint.file_name(digest)).exists():
        return manifest, checkpoint.read(folder, digest, manifest)
    try:
        return manifest, fetch(store, run, digest, manifest, chunk_bytes)
    except ContentMissing as exc:
        raise UnknownVersion(
            run,
            version,
            "has been pruned, or its checkpoint is on another machine (use --state-dir, or raise model.keep_versions)",
        ) from exc


def export_version(
    store: Store, state: RunState, version: int, chunk_bytes: int, state_dir: Path, path: Path
) -> str:
    """
    Write a version as safetensors, for ``load_state_dict``; returns its digest.

    Raises:
        UnknownVersion, CheckpointError: As ``load_version`` and ``checkpoint.export``.
    """
    manifest, body = load_version(store, state.run_id, version, chunk_bytes, state_dir)
    digest = str(store.control.versions.all(state.run_id)[version]["digest"])
    metadata = {"run": state.name, "version": str(version), "digest": digest}
    checkpoint.export(body, manifest, path, metadata)
    return digest


def publish_initial(store: Store, path: Path, chunk_bytes: int) -> dict[str, object]:
    """
    Put a safetensors file's tensors on the data server for the initialising job.

    Returns:
        What the run records of it: digest, size, and each tensor's name, dtype and shape.

    Raises:
        DataError: Not a safetensors file, or a tensor of a dtype a model cannot have.
    """
    arrays = {
        name: _as_model(array) for name, array in sorted(checkpoint.read_tensors(path).items())
    }
    for name, array in arrays.items():
        if np.isnan(array).any():
            reason = f"tensor {name!r} holds NaN; start from another model"
            raise DataError(str(path), reason)
    body = b"".join(array.tobytes() for array in arrays.values())
    digest = message.body_digest(body)
    view = memoryview(body)
    pieces = (view[piece] for piece in message.chunk_slices(len(body), chunk_bytes))
    store.data.chunks.put(keyspace.model_blob(INITIAL, digest), pieces, INITIAL_LIFETIME_S)
    tensors = [[name, str(array.dtype), list(array.shape)] for name, array in arrays.items()]
    return {"digest": digest, "nbytes": len(body), "chunk_bytes": chunk_bytes, "tensors": tensors}


def initial_arrays(
    store: Store, run: str, initial: Mapping[str, Any], manifest: Manifest
) -> dict[str, np.ndarray]:
    """
    The arrays of a run's initial model, for the task's manifest.

    Raises:
        ModelMismatch: A tensor is missing, of another shape, or not in the task's model.
        ContentMissing: It is not on the data server (any more).
    """
    body = store.data.chunks.get(
        keyspace.model_blob(INITIAL, initial["digest"]), initial["nbytes"], initial["chunk_bytes"]
    )
    if message.body_digest(body) != initial["digest"]:
        raise DigestMismatch(initial["digest"])
    arrays, offset = {}, 0
    for name, dtype, shape in initial["tensors"]:
        array = np.frombuffer(body, dtype, math.prod(shape), offset).reshape(shape)
        arrays[name] = array
        offset += array.nbytes
    return fitted(arrays, manifest, f"the initial model of run {run}")


def fitted(
    arrays: Mapping[str, np.ndarray], manifest: Manifest, where: str
) -> dict[str, np.ndarray]:
    """
    The arrays of ``model.initial`` as the task's model has them.

    Args:
        where: They are from, for messages.

    Raises:
        ModelMismatch: A tensor is missing, of another shape, or not in the task's model.
    """
    for spec in manifest.tensors:
        found = arrays.get(spec.name)
        if found is None or found.shape != spec.shape:
            what = "is missing" if found is None else f"has shape {found.shape}, not {spec.shape}"
            raise ModelMismatch(
                f"model.initial: tensor {spec.name!r} {what} in {where}",
                public=f"model.initial: tensor {spec.name!r} {what}",
            )
        # A buffer may be infinite, as the mask of an attention is.
        with np.errstate(over="ignore"):
            is_bad = spec.kind == "parameter" and not np.isfinite(found.astype(spec.dtype)).all()
        if is_bad:
            what = "is not finite in float32; start from another model"
            raise ModelMismatch(
                f"model.initial: tensor {spec.name!r} {what}",
                public=f"model.initial: tensor {spec.name!r} {what}",
            )
    extra = set(arrays) - {spec.name for spec in manifest.tensors} - set(manifest.aliases)
    if extra:
        raise ModelMismatch(
            f"model.initial: the task's model has no tensor {sorted(extra)[0]!r}",
            public="model.initial: it has a tensor that the task's model has not",
        )
    return {spec.name: arrays[spec.name].astype(spec.dtype) for spec in manifest.tensors}


def _as_model(array: np.ndarray) -> np.ndarray:
    return array.astype("<f4" if array.dtype.kind == "f" else "<i8")
