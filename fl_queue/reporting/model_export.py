"""
A run's version as a file that other tools read: a torch state dict, an ONNX graph.

safetensors is ``transfer.export_version``, which needs no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fl_queue.config.run_config import RunConfig
from fl_queue.models import transfer
from fl_queue.store import RunState, Store
from fl_queue.tasks import export


def export_version(
    store: Store,
    state: RunState,
    config: RunConfig,
    version: int,
    state_dir: Path,
    path: Path,
    kind: str,
    allow: Sequence[str] = (),
    data_dir: str = "",
) -> str:
    """
    Write a version by torch; returns its digest.

    Args:
        config: The run's.
        state_dir: Where this machine's checkpoints are, if it has any.
        kind: ``torch`` or ``onnx``.
        allow, data_dir: As for ``load``; for onnx.

    Raises:
        UnknownVersion: As ``transfer.load_version``.
        ConfigError, DataError, ModelMismatch: As ``export.write_torch`` and ``export.write_onnx``.
    """
    chunk_bytes = config.redis["chunk_bytes"]
    manifest, body = transfer.load_version(store, state.run_id, version, chunk_bytes, state_dir)
    digest = str(store.control.versions(state.run_id)[version]["digest"])
    if kind == "torch":
        export.write_torch(path, manifest, body)
    else:
        task = export.load(config, allow, data_dir)
        said = {"run": state.name, "version": str(version), "task": config.run["task"]}
        export.write_onnx(path, task, manifest, body, {**said, "digest": digest}, data_dir)
    return digest
