"""The models of a backup: staged beside its file, and from there to disk and to the data server again."""

from __future__ import annotations

import shutil
import zipfile
from contextlib import nullcontext, suppress
from pathlib import Path

from fl_queue.coordinator.operations.backup_file import Document, read_model
from fl_queue.errors import CheckpointError, ContentMissing, DataError, UnknownVersion
from fl_queue.models import checkpoint
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
    """Write the models and the strategy's state of a backup to disk and to the data server, or nothing."""
    try:
        _restore_base_part(models, archive, path, manifest)
        # The newest last: it also goes to the data server, when all else is good.
        for version in sorted(document.models):
            _restore_model(models, archive, path, document, manifest, version)
            _restore_state(models, archive, path, document, manifest, version)
    # Whatever ends it, an interrupt or RQ's timeout too: it is raised again after the clean-up.
    except BaseException:
        shutil.rmtree(models.folder, ignore_errors=True)
        raise


def _restore_model(
    models: ModelStore,
    archive: zipfile.ZipFile,
    path: Path,
    document: Document,
    manifest: Manifest,
    version: int,
) -> None:
    run, folder, digest = models.run, models.folder, document.digest(version)
    body = read_model(archive, path, digest, manifest, folder)
    entry = document.versions[str(version)]
    metadata = {"run": run, "version": str(version), "round": str(entry["round"]), "digest": digest}
    checkpoint.write(folder, digest, manifest, body, metadata)
    if version == document.version:
        models.publish(digest, body)


def _restore_base_part(
    models: ModelStore, archive: zipfile.ZipFile, path: Path, manifest: Manifest
) -> None:
    base = manifest.published
    if base is not None:
        body = read_model(archive, path, base.digest, base, models.folder)
        checkpoint.write(models.folder, base.digest, base, body, {"run": models.run})
        models.publish(base.digest, body)


def _restore_state(
    models: ModelStore,
    archive: zipfile.ZipFile,
    path: Path,
    document: Document,
    manifest: Manifest,
    version: int,
) -> None:
    """State of the strategy at a version on disk, that of the newest on the data server, too."""
    run, folder, layout = models.run, models.folder, state_manifest(manifest)
    is_newest, there = version == document.version, archive.namelist()
    for name, digest in document.server_state(version).items():
        if not is_newest and checkpoint.file_name(digest) not in there:
            continue  # A backup of an earlier release, or the state was gone.
        body = read_model(archive, path, digest, layout, folder)
        metadata = {"run": run, "version": str(version), "state": name, "digest": digest}
        checkpoint.write(folder, digest, layout, body, metadata)
        if is_newest:
            models.publish(digest, body)
