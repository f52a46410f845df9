"""The models of a backup: staged beside its file, and from there to disk and to the data server again."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path

from fl_queue.coordinator.operations.backup_file import Document, read_model
from fl_queue.errors import CheckpointError, ContentMissing, DataError, UnknownVersion
from fl_queue.models import checkpoint
from fl_queue.models.checkpoint import Layout
from fl_queue.models.model_store import ModelStore
from fl_queue.protocol.manifest import Manifest
from fl_queue.store import Store
from fl_queue.strategies.layouts import state_manifest

# Writing


def stage(store: Store, document: Document, version: int, state_dir: Path, writing: Path) -> None:
    """
    Write a version's model and its strategy's state, and with the newest what belongs to the run.

    An older version whose state is gone is written without it: it can be exported.

    Args:
        writing: Folder of the files.

    Raises:
        UnknownVersion, CheckpointError: It is nowhere to be found, or damaged.
        DataError: It cannot be written.
    """
    run = document.run_id
    models = ModelStore(store, run, document.chunk_bytes, state_dir)
    manifest, body = models.load_version(version)
    digest = document.digest(version)
    metadata = {"run": run, "version": str(version), "digest": digest}
    try:
        checkpoint.write(writing, digest, manifest, body, metadata)
        with nullcontext() if version == document.version else suppress(UnknownVersion):
            _stage_state(models, document, version, manifest, writing)
        if version == document.version:
            _stage_base_part(models, document, manifest, writing)
    except CheckpointError as exc:
        raise DataError(str(writing.parent), exc.reason) from exc


def _stage_state(
    models: ModelStore, document: Document, version: int, manifest: Manifest, writing: Path
) -> None:
    """State of the strategy at a version. Raises UnknownVersion."""
    run, layout = document.run_id, state_manifest(manifest)
    for name, digest in document.server_state(version).items():
        try:
            body = models.open_body(digest, layout)
        except (ContentMissing, CheckpointError) as exc:
            raise UnknownVersion(run, version, f"lacks its state {name!r}: {exc}") from exc
        metadata = {"run": run, "version": str(version), "state": name, "digest": digest}
        checkpoint.write(writing, digest, layout, body.view, metadata)


def _stage_base_part(
    models: ModelStore, document: Document, manifest: Manifest, writing: Path
) -> None:
    """The run's base part, once for all versions; a local one is the sites' own."""
    base = manifest.published
    if base is None:
        return
    try:
        body = models.open_base(base)
    except (ContentMissing, CheckpointError) as exc:
        why = f"lacks the run's base part: {exc}"
        raise UnknownVersion(document.run_id, document.version, why) from exc
    checkpoint.write(writing, base.digest, base, body.view, {"run": document.run_id})


# Restoring


def restore_models(
    models: ModelStore,
    archive: zipfile.ZipFile,
    path: Path,
    document: Document,
    manifest: Manifest,
) -> None:
    """
    Write the models and the strategy's state of a backup to disk, and what a round needs to the data server; or nothing.

    Chunks without a run would stay on the data server for good, so they come last, when every file is good.
    """
    unpack = partial(_unpack, models, archive, path)
    try:
        if manifest.published is not None:
            unpack(manifest.published.digest, manifest.published, {"run": models.run})
        for version in sorted(document.models):
            digest, found = document.digest(version), {"run": models.run, "version": str(version)}
            made_in = str(document.versions[str(version)]["round"])
            unpack(digest, manifest, {**found, "round": made_in, "digest": digest})
            for name, state in _states(archive, document, version).items():
                unpack(state, state_manifest(manifest), {**found, "state": name, "digest": state})
        _publish(models, document, manifest)
    # Whatever ends it, an interrupt or RQ's timeout too: it is raised again after the clean-up.
    except BaseException:
        shutil.rmtree(models.folder, ignore_errors=True)
        raise


def _unpack(
    models: ModelStore,
    archive: zipfile.ZipFile,
    path: Path,
    digest: str,
    layout: Layout,
    metadata: Mapping[str, str],
) -> None:
    """Write one body of a backup to disk."""
    body = read_model(archive, path, digest, layout, models.folder)
    checkpoint.write(models.folder, digest, layout, body, metadata)


def _states(archive: zipfile.ZipFile, document: Document, version: int) -> Mapping[str, str]:
    """Name -> digest of the strategy's state at a version; that of the newest has to be there."""
    found, there = document.server_state(version), archive.namelist()
    if version == document.version:
        return found
    # A backup of an earlier release has none of older versions; or it was gone.
    return {name: state for name, state in found.items() if checkpoint.file_name(state) in there}


def _publish(models: ModelStore, document: Document, manifest: Manifest) -> None:
    """Bring the newest version, its state and the base part from disk to the data server."""
    if manifest.published is not None:
        models.restore_base(manifest.published)
    models.restore(document.digest(document.version), manifest)
    for state in document.server_state(document.version).values():
        models.restore(state, state_manifest(manifest))
