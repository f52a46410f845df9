"""Models of single sites: a round's base version, and the update that a client made of it (``model.keep_updates``)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fl_queue.config.run_config import RunConfig
from fl_queue.errors import RunStateError
from fl_queue.models import update_archive, whole_model
from fl_queue.models.model_store import ModelStore
from fl_queue.protocol import message, tensor_layout
from fl_queue.protocol.codecs import codec
from fl_queue.protocol.manifest import Manifest
from fl_queue.protocol.records import RoundRecord
from fl_queue.protocol.tensor_layout import Tensor
from fl_queue.strategies.layouts import update_manifest


def check(name: str, config: RunConfig, manifest: Manifest) -> None:
    """
    Raise RunStateError unless models of single sites can be made of a run.

    Args:
        name: Of the run.
        manifest: Of its versions.
    """
    if not config.model.keep_updates:
        raise RunStateError(
            name,
            "keeps no updates, so no site's own model can be made; train with model.keep_updates = true",
        )
    if config.plain_strategy().has_factors:
        raise RunStateError(
            name,
            f"is of {config.aggregation.strategy}, whose updates are scaled by each site, so none makes its own model",
        )
    if config.is_async or config.is_simulation:
        kind = "an asynchronous run" if config.is_async else "a simulation"
        raise RunStateError(name, f"is {kind}; a matrix is of sites in synchronous rounds")
    if manifest.private:
        raise RunStateError(
            name,
            "has layers that stay at the sites (model.private), so no whole model of a site is here",
        )


def write(
    models: ModelStore, config: RunConfig, record: RoundRecord, client: str, path: Path
) -> None:
    """
    Write the model that a client had at the end of a round, before it was merged, as a safetensors file.

    It is exact where ``update.codec`` and ``model.codec`` are float32; else it has their rounding.

    Args:
        models: Versions and kept updates of the run.
        config: The one that was in force.
        record: Of the round; the client is in its accepted set.
        path: File to write.

    Raises:
        DataError: The update is not there, or damaged; the base part is at the sites alone.
        UnknownVersion: The base version is gone.
        MessageError: The update is not of the run's model.
        CheckpointError: The file cannot be written.
    """
    digest = record.accepted[client]
    update = update_archive.read(models.state_dir, models.run, record.round, client, digest)
    manifest, base = models.load_version(record.base_version)
    sent = update_manifest(config.plain_strategy(), manifest)
    changes = codec.LazyDecodedTensors(codec.encoding(config.update), sent, update.body)
    message.check_body(update.header, update.body)
    body = _moved(manifest, base, changes)
    base_part = models.open_base(manifest.base).view if manifest.base is not None else None
    metadata = {"run": models.run, "round": str(record.round), "client": client}
    whole_model.write(path, whole_model.tensors_of(manifest, body, base_part), metadata)


def _moved(manifest: Manifest, base: bytearray, changes: codec.LazyDecodedTensors) -> bytes:
    """The body of a version, moved by an update; whole numbers are those of the client."""
    views = tensor_layout.views(manifest, base)

    def moved(name: str, kind: str) -> Tensor:
        if name not in changes:
            return views[name]
        if kind == "integer_buffer":
            return changes[name]
        return (views[name] + changes[name]).astype(np.float32)

    return b"".join(
        tensor_layout.as_bytes(tensor_layout.little_endian(moved(spec.name, spec.kind).reshape(-1)))
        for spec in manifest.tensors
    )
