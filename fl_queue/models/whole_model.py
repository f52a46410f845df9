"""
A version together with the run's base part: one safetensors file, in the dtypes that each tensor has.

safetensors' own writer takes arrays of numpy, which has no bfloat16; here base tensors are bytes. No torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fl_queue.common import files
from fl_queue.common.safetensors_head import safetensors_head
from fl_queue.errors import CheckpointError, DataError
from fl_queue.models import weights_file
from fl_queue.protocol import tensor_layout
from fl_queue.protocol.arrays import Tensor
from fl_queue.protocol.base_part import ITEM_BYTES
from fl_queue.protocol.manifest import Adapters, Manifest
from fl_queue.protocol.tensor_layout import Bytes

_DTYPES = {"float32": "F32", "int64": "I64"}
#: dtypes that a model can be exported in, and their names in the file.
_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
EXPORT_DTYPES = tuple(_NAMES)
_FLOATS = {"F64": "float64", **{name: dtype for dtype, name in _NAMES.items()}}


class StoredTensor(NamedTuple):
    """A tensor in a file. Args: ``dtype``: as safetensors names it."""

    dtype: str
    shape: tuple[int, ...]
    content: memoryview


def tensors_of(
    manifest: Manifest, body: Bytes, base_body: Bytes | None = None
) -> dict[str, StoredTensor]:
    """
    The tensors of a model by name, aliases among them; views of the bodies.

    Args:
        base_body: Of the base part; None: without its tensors.

    Raises:
        MessageError: A body has another size.
    """
    views = tensor_layout.views(manifest, body)
    found = {
        spec.name: StoredTensor(
            _DTYPES[spec.dtype], spec.shape, tensor_layout.as_bytes(views[spec.name].reshape(-1))
        )
        for spec in manifest.tensors
    }
    if manifest.base is not None and base_body is not None:
        contents = manifest.base.views(base_body)
        for one in manifest.base.tensors:
            found[one.name] = StoredTensor(one.dtype, one.shape, contents[one.name])
    return found | {name: found[of] for name, of in manifest.aliases.items() if of in found}


def cast(tensor: StoredTensor, dtype: str) -> StoredTensor:
    """
    A tensor in another floating-point dtype, rounded to nearest even.

    Args:
        tensor: Of whole numbers or 8-bit floats it is returned as it is.
        dtype: ``float32``, ``float16`` or ``bfloat16``.
    """
    if tensor.dtype not in _FLOATS or _NAMES[dtype] == tensor.dtype:
        return tensor
    with np.errstate(over="ignore"):
        values = weights_file.elements(tensor.content, _FLOATS[tensor.dtype], tensor.shape)
        values = np.ascontiguousarray(values, "<f4").reshape(-1)
        if dtype == "float16":
            values = values.astype("<f2")
    if dtype == "bfloat16":
        values = _upper_half(values)
    return StoredTensor(_NAMES[dtype], tensor.shape, tensor_layout.as_bytes(values))


def _upper_half(values: Tensor) -> Tensor:
    """The bits of float32 values as bfloat16: the upper half, rounded to nearest even; NaN stays NaN."""
    bits = values.view("<u4")
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(values), np.uint32(0x7FC0), rounded).astype("<u2")


def adapter_tensors(
    adapters: Adapters, tensors: Mapping[str, StoredTensor]
) -> dict[str, StoredTensor]:
    """
    The tensors of ``adapter_model.safetensors`` under the names that peft gives them.

    Raises:
        DataError: One of them is in the base part, and that is not here.
    """
    for name in adapters.names.values():
        if name not in tensors:
            raise DataError(f"tensor {name}", "is in the base part, which is at the sites alone")
    return {theirs: tensors[name] for theirs, name in adapters.names.items()}


def write(path: Path, tensors: Mapping[str, StoredTensor], metadata: Mapping[str, str]) -> None:
    """
    Write tensors as a safetensors file; an existing one is replaced.

    Raises:
        CheckpointError: It cannot be written; the old file, if any, is as it was.
    """
    # A rename would put a file in the place of a device such as /dev/stdout.
    if path.exists() and not path.is_file():
        raise CheckpointError(str(path), "is not a file; name a file to write to")
    try:
        with files.write_atomically(path, durable=True, mode=files.SHARED) as out:
            for piece in _file(tensors, metadata):
                out.write(piece)
    except OSError as exc:
        reason = f"{exc.strerror or exc}; free space or allow writing in its folder"
        raise CheckpointError(str(path), reason) from exc


def _file(tensors: Mapping[str, StoredTensor], metadata: Mapping[str, str]) -> Iterator[Any]:
    """The bytes of the file. Larger elements first: each tensor is aligned, as that format's writers do."""
    order = sorted(tensors, key=lambda name: (-_item_bytes(tensors[name]), name))
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name in order:
        dtype, shape, content = tensors[name]
        end = offset + len(content)
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    yield safetensors_head(entries)
    for name in order:
        yield tensors[name].content


def _item_bytes(tensor: StoredTensor) -> int:
    return ITEM_BYTES[tensor.dtype]
