"""
Where model versions are: chunks on the data server, checkpoints on the aggregator's disk.

Both are named by digest and written once; the same version is the same bytes in both.
"""

from __future__ import annotations

from pathlib import Path

from fl_queue import blob, checkpoint
from fl_queue.errors import ChunksMissing, UnknownVersion
from fl_queue.records import Manifest
from fl_queue.store import Store


def checkpoint_folder(state_dir: Path, run: str) -> Path:
    """Folder of a run's checkpoints."""
    return state_dir / "checkpoints" / run


def publish(store: Store, run: str, digest: str, body: bytes | bytearray, chunk_bytes: int) -> None:
    """Store a model's chunks on the data server; they stay until they are dropped."""
    view = memoryview(body)
    store.data.put_chunks(run, digest, (view[piece] for piece in blob.chunk_slices(len(body), chunk_bytes)), None)


def fetch(store: Store, run: str, digest: str, manifest: Manifest, chunk_bytes: int) -> bytearray:
    """
    A model's body from the data server, its digest checked.

    Raises:
        ChunksMissing: It is not there (any more).
    """
    body = store.data.get_chunks(run, digest, manifest.nbytes, chunk_bytes)
    if blob.body_digest(body) != digest:
        raise ChunksMissing(digest, 0)
    return body


def restore(store: Store, run: str, digest: str, manifest: Manifest, chunk_bytes: int, state_dir: Path) -> bool:
    """
    Bring a model back to the data server from its checkpoint, if its chunks are not there.

    Returns:
        Whether it had to be brought back.

    Raises:
        CheckpointError: The checkpoint is not there, or not what its name says.
    """
    if not store.data.missing_chunks(run, digest, blob.chunk_count(manifest.nbytes, chunk_bytes)):
        return False
    body = checkpoint.read(checkpoint_folder(state_dir, run), digest, manifest)
    publish(store, run, digest, body, chunk_bytes)
    return True


def load_version(store: Store, run: str, version: int, chunk_bytes: int, state_dir: Path) -> tuple[Manifest, bytearray]:
    """
    A version's manifest and body, from the checkpoint of this machine or the data server.

    Raises:
        UnknownVersion: There is no such version, or its content is nowhere to be found.
    """
    versions = store.control.versions(run)
    manifest = store.control.manifest(run)
    if version not in versions or manifest is None:
        there = f"0 to {max(versions)}" if versions else "none yet"
        raise UnknownVersion(run, version, f"does not exist (versions: {there})")
    digest = versions[version]["digest"]
    folder = checkpoint_folder(state_dir, run)
    if (folder / f"{digest}.safetensors").exists():
        return manifest, checkpoint.read(folder, digest, manifest)
    try:
        return manifest, fetch(store, run, digest, manifest, chunk_bytes)
    except ChunksMissing as exc:
        raise UnknownVersion(
            run, version, "has been pruned, or its checkpoint is on another machine (use --state-dir, or raise model.keep_versions)"
        ) from exc
