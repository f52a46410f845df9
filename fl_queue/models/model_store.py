"""
One run's model versions: chunks on the data server, checkpoints and a cache on this machine.

A version is named by the digest of its content and written once; it has the same bytes in all three places.
So is the run's base part, which is written with version 0 and belongs to all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fl_queue.common.files import Mapped
from fl_queue.errors import (
    CheckpointError,
    ContentMissing,
    DataError,
    DigestMismatch,
    UnknownVersion,
)
from fl_queue.models import checkpoint
from fl_queue.models.checkpoint import Body, checkpoint_folder
from fl_queue.models.host_cache import HostCache, cache_folder
from fl_queue.protocol import header, tensor_layout
from fl_queue.protocol.base_part import BasePart
from fl_queue.protocol.codecs import codec
from fl_queue.protocol.manifest import Manifest
from fl_queue.store import Store, keyspace
from fl_queue.strategies.layouts import state_manifest

#: Time for which a base part stays on the data server whose version 0 is not committed, seconds.
UNCOMMITTED_S = 24 * 3600


@dataclass(frozen=True)
class ModelStore:
    """
    Model versions of one run, as one machine reaches them.

    Args:
        store: Connections to both servers.
        run: Run id.
        chunk_bytes: Size of a chunk on the data server, from the run's config.
        state_dir: This machine's state folder; its checkpoints and its cache are below it.
    """

    store: Store
    run: str
    chunk_bytes: int
    state_dir: Path

    @property
    def folder(self) -> Path:
        """Folder of the run's checkpoints on this machine."""
        return checkpoint_folder(self.state_dir, self.run)

    @property
    def cache(self) -> HostCache:
        """Models of the run that this machine has fetched."""
        return HostCache(self.store, cache_folder(self.state_dir), self.run, self.chunk_bytes)

    # Chunks on the data server

    def publish(self, digest: str, body: tensor_layout.Bytes) -> None:
        """Store a model's chunks on the data server; they stay until they are dropped."""
        self._put(digest, body, None)

    def _put(self, digest: str, body: tensor_layout.Bytes, lifetime_s: int | None) -> None:
        view = memoryview(body)
        self.store.data.chunks.put(
            keyspace.model_blob(self.run, digest),
            (view[piece] for piece in tensor_layout.chunk_slices(len(body), self.chunk_bytes)),
            lifetime_s,
            insist=True,
        )

    def publish_encoded(self, body: tensor_layout.Bytes, manifest: Manifest, encoding: str) -> str:
        """
        Store the encoded body that clients fetch in place of a version; it is encoded while it is sent.

        The encoded body is a function of the version, so any machine with the version can make it again.

        Returns:
            Digest of the encoded body; empty, and nothing is stored, when the codec changes nothing.
        """
        if encoding == "float32":
            return ""
        # Encoded twice, for the digest that names the chunks and for the chunks: it is never in memory whole.
        digest = tensor_layout.pieces_digest(codec.encoded_pieces(encoding, manifest, body))
        pieces = codec.encoded_pieces(encoding, manifest, body)
        chunks = tensor_layout.rechunked(pieces, self.chunk_bytes)
        self.store.data.chunks.put(keyspace.model_blob(self.run, digest), chunks, None, insist=True)
        return digest

    def fetch(self, digest: str, manifest: Manifest) -> bytearray:
        """
        A model's body from the data server into memory, its digest checked.

        Raises:
            ContentMissing: The data server does not have it (any more).
        """
        name = keyspace.model_blob(self.run, digest)
        body = self.store.data.chunks.get(name, manifest.nbytes, self.chunk_bytes)
        if tensor_layout.body_digest(body) != digest:
            raise DigestMismatch(digest)
        return body

    def drop(self, digest: str, nbytes: int) -> None:
        """Remove a model's chunks from the data server."""
        count = header.chunk_count(nbytes, self.chunk_bytes)
        self.store.data.chunks.drop(keyspace.model_blob(self.run, digest), count)

    def publish_base(self, base: BasePart, body: tensor_layout.Bytes) -> None:
        """
        Store the chunks of a base part before its version 0 is committed: for a day, unless ``keep_base`` follows.

        Another maker's base part may be committed instead, and its maker may be killed at any moment.
        """
        self._put(base.digest, body, UNCOMMITTED_S)

    def keep_base(self, base: BasePart) -> None:
        """Have the chunks of the run's base part stay: its version 0 is committed."""
        count = header.chunk_count(base.nbytes, self.chunk_bytes)
        self.store.data.chunks.set_lifetime(keyspace.model_blob(self.run, base.digest), count, None)

    def restore_base(self, base: BasePart) -> bool:
        """
        Bring a run's base part back to the data server from its file, if its chunks are not there.

        Returns:
            Whether anything was missing.

        Raises:
            CheckpointError: The file is missing, or its content does not have the digest.
        """
        if not self._is_lost(base.digest, base.nbytes):
            return False
        self.publish(base.digest, checkpoint.open_body(self.folder, base.digest, base).view)
        return True

    def restore(
        self, digest: str, manifest: Manifest, download: str = "", encoding: str = "float32"
    ) -> bool:
        """
        Bring a model back to the data server from its checkpoint, if its chunks are not there.

        Args:
            download: Digest of its encoded body, which is brought back too; empty: there is none.
            encoding: The codec of that body.

        Returns:
            Whether anything was missing.

        Raises:
            CheckpointError: The checkpoint is missing, or its content does not have the digest.
        """
        is_model_lost = self._is_lost(digest, manifest.nbytes)
        encoded_nbytes = codec.encoded_nbytes(encoding, manifest)
        is_download_lost = bool(download) and self._is_lost(download, encoded_nbytes)
        if not (is_model_lost or is_download_lost):
            return False
        body = checkpoint.open_body(self.folder, digest, manifest)
        if is_model_lost:
            self.publish(digest, body.view)
        if is_download_lost:
            self.publish_encoded(body.view, manifest, encoding)
        return True

    def _is_lost(self, digest: str, nbytes: int) -> bool:
        count = header.chunk_count(nbytes, self.chunk_bytes)
        return bool(
            self.store.data.chunks.are_missing(keyspace.model_blob(self.run, digest), count)
        )

    # On this machine's disk

    def open_body(self, digest: str, manifest: Manifest) -> Mapped | Body:
        """
        A model's body as a file of this machine: its checkpoint, else fetched from the data server.

        Raises:
            ContentMissing, CheckpointError: Neither place has it.
        """
        try:
            return checkpoint.open_body(self.folder, digest, manifest)
        except CheckpointError:
            return self.cache.fetch(digest, manifest.nbytes)

    def open_base(self, base: BasePart) -> Mapped | Body:
        """
        The body of a run's base part as a file of this machine, else fetched from the data server.

        Raises:
            DataError: It is not published: the sites alone have it.
            ContentMissing, CheckpointError: Neither place has it.
        """
        if not base.is_published:
            raise DataError(
                f"base part {base.digest[:12]}",
                "is at the sites alone (model.base = local); export the adapters, with --adapters",
            )
        try:
            return checkpoint.open_body(self.folder, base.digest, base)
        except CheckpointError:
            return self.cache.fetch_base(base)

    def open_version(self, version: int, manifest: Manifest) -> Mapped | Body:
        """
        The body of a version, by its number.

        Raises:
            ContentMissing, CheckpointError: Neither place has it.
        """
        digest = self.store.control.versions.get(self.run, version).get("digest", "")
        if not digest:
            raise CheckpointError(f"version {version}", "is not recorded (any more)", public=True)
        return self.open_body(digest, manifest)

    def is_there(self, version: int, with_state: bool = True) -> bool:
        """
        Whether this machine can get a version: from its checkpoints, or from the data server.

        Args:
            with_state: And what the strategy keeps with it, without which no round commits from it.
        """
        entry = self.store.control.versions.get(self.run, version)
        digest, manifest = entry.get("digest", ""), self.store.control.versions.manifest(self.run)
        if not digest or manifest is None or not self._is_either_place(digest, manifest):
            return False
        states = entry.get("server_state", {}).values() if with_state else ()
        layout = state_manifest(manifest)
        return all(self._is_either_place(state, layout) for state in states)

    def _is_either_place(self, digest: str, manifest: Manifest) -> bool:
        return self.is_on_disk(digest) or not self._is_lost(digest, manifest.nbytes)

    def is_on_disk(self, digest: str) -> bool:
        """Whether this machine has the checkpoint of a version, or of a strategy's state."""
        return (self.folder / checkpoint.file_name(digest)).exists()

    def restore_version(self, version: int, encoding: str, with_state: bool = True) -> None:
        """
        Bring a version back to the data server from its checkpoints, as far as its chunks are not there.

        Args:
            encoding: The codec of its encoded body, if it has one.
            with_state: And what the strategy keeps with it.

        Raises:
            CheckpointError: A checkpoint that is needed is missing, or damaged.
        """
        entry = self.store.control.versions.get(self.run, version)
        manifest = self.store.control.versions.manifest(self.run)
        if "digest" not in entry or manifest is None:
            raise CheckpointError(f"version {version}", "is not recorded (any more)", public=True)
        self.restore(entry["digest"], manifest, entry.get("download", ""), encoding)
        for digest in entry.get("server_state", {}).values() if with_state else ():
            self.restore(digest, state_manifest(manifest))

    def state_arrays(
        self, digests: Mapping[str, str], manifest: Manifest
    ) -> dict[str, dict[str, np.ndarray]]:
        """
        A strategy's server state that belongs to a version, as views of files.

        Args:
            digests: Name -> digest.
            manifest: The model's.

        Raises:
            ContentMissing, CheckpointError: Neither place has it.
        """
        layout = state_manifest(manifest)
        return {
            name: tensor_layout.views(layout, self.open_body(digest, layout).view)
            for name, digest in digests.items()
        }

    def load_version(self, version: int) -> tuple[Manifest, bytearray]:
        """
        A version's manifest and body in memory, from this machine's checkpoint or the data server.

        Raises:
            UnknownVersion: There is no such version, or neither place has its content.
        """
        versions = self.store.control.versions.all(self.run)
        manifest = self.store.control.versions.manifest(self.run)
        if version not in versions or manifest is None:
            there = f"0 to {max(versions)}" if versions else "none yet"
            raise UnknownVersion(self.run, version, f"does not exist (versions: {there})")
        digest = versions[version]["digest"]
        if self.is_on_disk(digest):
            return manifest, checkpoint.read(self.folder, digest, manifest)
        try:
            return manifest, self.fetch(digest, manifest)
        except ContentMissing as exc:
            raise UnknownVersion(
                self.run,
                version,
                "has been pruned, or its checkpoint is on another machine (use --state-dir, or raise model.keep_versions)",
            ) from exc
