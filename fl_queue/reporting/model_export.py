"""
Write a model version of a run to a file: safetensors, torch state dict or ONNX graph.

torch is imported for the last two alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fl_queue.analyses.base import STATE, Analysis
from fl_queue.common import collector, files
from fl_queue.config.run_config import RunConfig
from fl_queue.coordinator.rounds import runs
from fl_queue.errors import ConfigError, DataError, RunStateError
from fl_queue.models import checkpoint, selection, whole_model
from fl_queue.models.model_store import ModelStore
from fl_queue.models.whole_model import StoredTensor
from fl_queue.protocol import tensor_layout
from fl_queue.protocol.manifest import Manifest
from fl_queue.store import RunState, Store

#: Formats of the file.
PEFT = "peft"
JSON = "json"
SAFETENSORS, TORCH, ONNX = FORMATS = ("safetensors", "torch", "onnx")
_SUFFIXES = {".onnx": ONNX, ".pt": TORCH, ".pth": TORCH}


@dataclass(frozen=True)
class ExportRequest:
    """
    Which version is written, and how.

    Args:
        path: File to write.
        version: Its number, a tag, or a word as of ``selection.WORDS``; None: the newest.
        best: The version that ``run.select`` names, instead.
        kind: ``safetensors``, ``torch`` or ``onnx``; empty: by the suffix of the file.
        allow: Tasks of your own (``module:name``) that may be imported, for ``onnx``.
        data_dir: Data folder of the task, for ``onnx``.
        dtype: ``float32``, ``float16`` or ``bfloat16``: cast all floating-point tensors; empty: as they are.
        adapters: Write the adapters in peft's format, in the folder ``path``, in place of the whole model.
    """

    path: Path
    version: int | str | None = None
    best: bool = False
    kind: str = ""
    allow: Sequence[str] = ()
    data_dir: str = ""
    dtype: str = ""
    adapters: bool = False

    def __post_init__(self) -> None:
        kind = self.kind or format_of(self.path)
        if self.dtype and kind != SAFETENSORS and not self.adapters:
            reason = f"is for safetensors, and this is {kind}; leave it out"
            raise ConfigError("--dtype", reason)
        if self.dtype and self.dtype not in whole_model.EXPORT_DTYPES:
            choices = ", ".join(whole_model.EXPORT_DTYPES)
            raise ConfigError("--dtype", f"{self.dtype!r} is none of {choices}")


@dataclass(frozen=True)
class ExportedModel:
    """
    A version that was written to a file.

    Args:
        version: Its number.
        digest: BLAKE3 of its tensors, hexadecimal.
        kind: Format of the file, or ``peft``.
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


def version_of(store: Store, state: RunState, version: int | str | None, best: bool) -> int:
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
        RunStateError: The run is an analysis; there is no version yet, or none has been tested.
        UnknownVersion: There is no such version, or its content is gone.
        CheckpointError: As ``checkpoint.export``.
        DataError, ModelMismatch: As ``export.write_torch`` and ``export.write_onnx``.
    """
    config = runs.current_config(store, state.run_id)
    if config.analysis is not None:
        return _export_analysis(store, state, state_dir, request, config.analysis)
    version = version_of(store, state, request.version, request.best)
    kind = request.kind or format_of(request.path)
    models = models_of(store, state.run_id, state_dir)
    manifest, body = models.load_version(version)
    digest = str(store.control.versions.all(state.run_id)[version]["digest"])
    metadata = {"run": state.name, "version": str(version), "digest": digest}
    if request.adapters:
        kind = PEFT
        _write_adapters(request, models, manifest, body, metadata)
    else:
        _write_whole(request, config, models, (manifest, body), metadata)
    return ExportedModel(version, digest, kind, config)


def _export_analysis(
    store: Store, state: RunState, state_dir: Path, request: ExportRequest, analysis: Analysis
) -> ExportedModel:
    """
    Write the model of an analysis, such as trees, as JSON.

    Raises:
        ConfigError: An option is for models that are trained.
        RunStateError: There is no model, or none yet.
    """
    for option, is_given in {
        "--version": request.version is not None,
        "--best": request.best,
        "--format": bool(request.kind),
        "--dtype": bool(request.dtype),
        "--adapters": request.adapters,
    }.items():
        if is_given:
            raise ConfigError(option, "is for models that are trained; leave it out")
    found, version, models = None, state.version, models_of(store, state.run_id, state_dir)
    if version is not None:
        words = tensor_layout.views(*models.load_version(version))[STATE].astype(np.int64)
        found = analysis.model(words) if analysis.result(words) is not None else None
    if found is None or version is None:
        reason = f"is an analysis, not a model; see `fl-queue result {state.name}`"
        raise RunStateError(state.name, reason)
    try:
        files.write(request.path, json.dumps(found).encode())
    except OSError as exc:
        raise DataError(str(request.path), f"cannot be written: {exc.strerror}") from exc
    digest = str(store.control.versions.all(state.run_id)[version]["digest"])
    return ExportedModel(version, digest, JSON, runs.current_config(store, state.run_id))


def _base_body(models: ModelStore, manifest: Manifest) -> memoryview | None:
    return models.open_base(manifest.base).view if manifest.base is not None else None


def _write_whole(
    request: ExportRequest,
    config: RunConfig,
    models: ModelStore,
    version: tuple[Manifest, bytearray],
    metadata: dict[str, str],
) -> None:
    """Write a version with the run's base part, in the requested format."""
    manifest, body = version
    base = _base_body(models, manifest)
    if (request.kind or format_of(request.path)) != SAFETENSORS:
        metadata["task"] = config.run.task
        _write_with_torch(request, config, (manifest, body, base), metadata)
    elif manifest.base is not None or request.dtype:
        if manifest.base is not None:
            metadata["base"] = manifest.base.digest
        tensors = whole_model.tensors_of(manifest, body, base)
        whole_model.write(request.path, _cast(tensors, request.dtype), metadata)
    else:
        checkpoint.export(body, manifest, request.path, metadata)


def _cast(tensors: dict[str, StoredTensor], dtype: str) -> dict[str, StoredTensor]:
    if not dtype:
        return tensors
    return {name: whole_model.cast(tensor, dtype) for name, tensor in tensors.items()}


def _write_adapters(
    request: ExportRequest,
    models: ModelStore,
    manifest: Manifest,
    body: bytearray,
    metadata: Mapping[str, str],
) -> None:
    """
    Write the adapters of a version as ``PeftModel.from_pretrained`` reads them.

    Raises:
        ConfigError: The model has no adapters of peft's.
    """
    adapters = manifest.adapters
    if adapters is None:
        raise ConfigError(
            "--adapters",
            "the model of this run has no adapters of peft's (or a worker of an older release built it); "
            "write all of it, with --output",
        )
    trained = {spec.name for spec in manifest.tensors} | manifest.aliases.keys()
    is_whole = not trained.issuperset(adapters.names.values())
    base = _base_body(models, manifest) if is_whole else None
    tensors = whole_model.tensors_of(manifest, body, base)
    chosen = _cast(whole_model.adapter_tensors(adapters, tensors), request.dtype)
    try:
        files.folder(request.path, files.SHARED_FOLDER)
    except OSError as exc:
        raise DataError(str(request.path), f"cannot be made: {exc.strerror or exc}") from exc
    # Readers of Hugging Face want to know whose tensors they are.
    pt = {**metadata, "format": "pt"}
    whole_model.write(request.path / "adapter_model.safetensors", chosen, pt)
    text = json.dumps(dict(adapters.config), indent=2, sort_keys=True) + "\n"
    files.write(request.path / "adapter_config.json", text.encode())


def _write_with_torch(
    request: ExportRequest,
    config: RunConfig,
    model: tuple[Manifest, bytearray, memoryview | None],
    metadata: Mapping[str, str],
) -> None:
    with collector.paused():
        from fl_queue.tasks import export  # torch

    manifest, body, base = model
    if (request.kind or format_of(request.path)) == TORCH:
        export.write_torch(request.path, manifest, body, base)
        return
    task = export.load(config, request.allow, request.data_dir)
    export.write_onnx(request.path, task, manifest, body, metadata, request.data_dir, base)
