"""The initial model of a run (``model.initial``): published by the operator, read by the job that makes version 0."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fl_queue.errors import DataError, DigestMismatch, ModelMismatch
from fl_queue.models import checkpoint
from fl_queue.protocol import tensor_layout
from fl_queue.protocol.manifest import Manifest
from fl_queue.store import Store, keyspace

#: Initial models lie under this in place of a run id, until the run's first job has read them.
INITIAL = "initial"
INITIAL_LIFETIME_S = 7 * 24 * 3600


def publish_initial(store: Store, path: Path, chunk_bytes: int) -> dict[str, object]:
    """
    Put a safetensors file's tensors on the data server for the initialising job.

    Returns:
        The run's record of it: digest, size, and each tensor's name, dtype and shape.

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
    digest = tensor_layout.body_digest(body)
    view = memoryview(body)
    pieces = (view[piece] for piece in tensor_layout.chunk_slices(len(body), chunk_bytes))
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
    if tensor_layout.body_digest(body) != initial["digest"]:
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
        where: Source of the arrays, for messages.

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
