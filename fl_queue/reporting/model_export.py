"""
Write a model version of a run to a file: safetensors, torch state dict or ONNX graph.

torch is imported for the last two alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fl_queue.config.run_config import RunConfig
from fl_queue.coordinator.rounds import runs
from fl_queue.errors import ConfigError
from fl_queue.models import checkpoint, selection, whole_model
from fl_queue.models.model_store import ModelStore
from fl_queue.protocol.manifest import Manifest
from fl_queue.store import RunState, Store

#: Formats of the file.
SAFETENSORS, TORCH, ONNX = FORMATS = ("safetensors", "torch", "onnx")
_SUFFIXES = {".onnx": ONNX, ".pt": TORCH, ".pth": TORCH}


@dataclass(frozen=True)
class ExportRequest:
    """
    Which version is written, and how.

    Args:
        path: File to write.
        version: Its number; None: the newest.
        best: The version that ``run.select`` names, instead.
        kind: ``safetensors``, ``torch`` or ``onnx``; empty: by the suffix of the file.
        allow: Tasks of your own (``module:name``) that may be imported, for ``onnx``.
        data_dir: Data folder of the task, for ``onnx``.
    """

    path: Path
    version: int | None = None
    best: bool = False
    kind: str = ""
    allow: Sequence[str] = ()
    data_dir: str = ""


@dataclass(frozen=True)
class ExportedModel:
    """
    A version that was written to a file.

    Args:
        version: Its number.
        digest: BLAKE3 of its tensors, hexadecimal.
        kind: Format of the file.
        config: The run's newest config.
    """

    version: int
    digest: str
    kind: str
    config: RunConfig


def format_of(path: Path) -> str:
    """Choose a format by the suffix of a file: ``.pt``, ``.pth``, ``.onnx``, else safetensors."""
    return _SUFFIXES.get(path.suffix.lower(), SAFETENSORS)


def models_of(store: Store, run_id: str, state_dir: Path) -> ModelStore:
    """Open the versions of a run, by its newest config. Raises UnknownRun."""
    config = runs.current_config(store, run_id)
    return ModelStore(store, run_id, config.redis.chunk_bytes, state_dir)


def version_of(store: Store, state: RunState, version: int | None, best: bool) -> int:
    """
    Find the number of the best, a named or the newest version.

    Raises:
        ConfigError: ``best`` and a number are given.
        RunStateError: There is no version yet, or none has been tested.
    """
    if best and version is not None:
        raise ConfigError("best", "cannot be used with a version; leave one of them out")
    config = runs.current_config(store, state.run_id)
    return selection.chosen_version(store, state, config, version, best)


def export_version(
    store: Store, state: RunState, state_dir: Path, request: ExportRequest
) -> ExportedModel:
    """
    Write a version to a file.

    Args:
        state_dir: Folder of this machine's state, which may have the checkpoint.

    Raises:
        ConfigError: ``best`` and a version are given; or as ``export.write_onnx``.
        RunStateError: There is no version yet, or none has been tested.
        UnknownVersion: There is no such version, or its content is gone.
        CheckpointError: As ``checkpoint.export``.
        DataError, ModelMismatch: As ``export.write_torch`` and ``export.write_onnx``.
    """
    config = runs.current_config(store, state.run_id)
    version = version_of(store, state, request.version, request.best)
    kind = request.kind or format_of(request.path)
    models = models_of(store, state.run_id, state_dir)
    manifest, body = models.load_version(version)
    base = models.open_base(manifest.base).view if manifest.base is not None else None
    digest = str(store.control.versions.all(state.run_id)[version]["digest"])
    metadata = {"run": state.name, "version": str(version), "digest": digest}
    if kind != SAFETENSORS:
        metadata["task"] = config.run.task
        _write_with_torch(request, config, (manifest, body, base), metadata)
    elif manifest.base is not None and base is not None:
        tensors = whole_model.tensors_of(manifest, body, manifest.base, base)
        whole_model.write(request.path, tensors, metadata | {"base": manifest.base.digest})
    else:
        checkpoint.export(body, manifest, request.path, metadata)
    return ExportedModel(version, digest, kind, config)


def _write_with_torch(
    request: ExportRequest,
    config: RunConfig,
    model: tuple[Manifest, bytearray, memoryview | None],
    metadata: Mapping[str, str],
) -> None:
    from fl_queue.tasks import export  # torch

    manifest, body, base = model
    if (request.kind or format_of(request.path)) == TORCH:
        export.write_torch(request.path, manifest, body, base)
        return
    task = export.load(config, request.allow, request.data_dir)
    export.write_onnx(request.path, task, manifest, body, metadata, request.data_dir, base)
