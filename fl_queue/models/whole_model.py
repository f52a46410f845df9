"""
A version together with the run's base part: one safetensors file, in the dtypes that each tensor has.

safetensors' own writer takes arrays of numpy, which has no bfloat16; here base tensors are bytes. No torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fl_queue.common import files
from fl_queue.common.safe_json import dumps
from fl_queue.errors import CheckpointError
from fl_queue.protocol import tensor_layout
from fl_queue.protocol.base_part import ITEM_BYTES, BasePart
from fl_queue.protocol.manifest import Manifest
from fl_queue.protocol.tensor_layout import Bytes

_DTYPES = {"float32": "F32", "int64": "I64"}


class StoredTensor(NamedTuple):
    """A tensor in a file. Args: ``dtype``: as safetensors names it."""

    dtype: str
    shape: tuple[int, ...]
    content: memoryview


def tensors_of(
    manifest: Manifest, body: Bytes, base: BasePart, base_body: Bytes
) -> dict[str, StoredTensor]:
    """
    All tensors of a model by name, aliases among them; views of the bodies.

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
    contents = base.views(base_body)
    for one in base.tensors:
        found[one.name] = StoredTensor(one.dtype, one.shape, contents[one.name])
    return found | {name: found[of] for name, of in manifest.aliases.items()}


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
    text = dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in order:
        yield tensors[name].content


def _item_bytes(tensor: StoredTensor) -> int:
    return ITEM_BYTES[tensor.dtype]
