"""
A run's version as a file that other tools read: safetensors, a torch state dict, an ONNX graph.

safetensors needs no torch, which is imported for the other two.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fl_queue.config.run_config import RunConfig
from fl_queue.models import checkpoint
from fl_queue.models.model_store import ModelStore
from fl_queue.store import RunState

#: Kinds of files that a version can be exported as.
FORMATS = ("safetensors", "torch", "onnx")
_SUFFIXES = {".onnx": "onnx", ".pt": "torch", ".pth": "torch"}


def format_of(path: Path) -> str:
    """One of ``FORMATS``, by the suffix of a file; safetensors unless it is that of another."""
    return _SUFFIXES.get(path.suffix.lower(), "safetensors")


def export_version(
    models: ModelStore,
    state: RunState,
    config: RunConfig,
    version: int,
    path: Path,
    kind: str = "safetensors",
    allow: Sequence[str] = (),
    data_dir: str = "",
) -> str:
    """
    Write a version to a file; returns its digest.

    Args:
        models: The run's versions.
        config: The run's.
        kind: One of ``FORMATS``.
        allow, data_dir: As for ``tasks.export.load``; for onnx.

    Raises:
        UnknownVersion: As ``ModelStore.load_version``.
        CheckpointError: As ``checkpoint.export``.
        ConfigError, DataError, ModelMismatch: As ``export.write_torch`` and ``export.write_onnx``.
    """
    manifest, body = models.load_version(version)
    digest = str(models.store.control.versions.all(state.run_id)[version]["digest"])
    named = {"run": state.name, "version": str(version)}
    if kind == "safetensors":
        checkpoint.export(body, manifest, path, {**named, "digest": digest})
        return digest
    from fl_queue.tasks import export  # torch

    if kind == "torch":
        export.write_torch(path, manifest, body)
        return digest
    task = export.load(config, allow, data_dir)
    metadata = {**named, "task": config.run["task"], "digest": digest}
    export.write_onnx(path, task, manifest, body, metadata, data_dir)
    return digest
