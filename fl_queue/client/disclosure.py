"""
Disclosure of everything that an update contains, shown before it is sent: ``approve`` and ``try-task``.

Every field of the header, and of each tensor what it is and how large its numbers are. No Redis here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from fl_queue.common.safe_json import dumps
from fl_queue.protocol import message
from fl_queue.protocol.codecs import codec
from fl_queue.protocol.header import Header, TensorEntry
from fl_queue.protocol.manifest import EXTRA, Kind, Manifest, TensorSpec

#: Elements looked at together: a large tensor is never in memory as float64.
_BLOCK = 1 << 20
#: Numbers of a table that are shown one by one.
_SHOWN = 100
#: Shown as tensors, or of elements that are no site's answer.
_LEFT_OUT = ("tensors", "members", "manifest")


def describe_update(header: Header, body: memoryview) -> dict[str, Any]:
    """
    An answer as plain values: ``bytes`` of all that leaves (but for a signature), ``header``, ``tensors``, ``norm``.

    Args:
        body: As it travels, encoded. A tensor's numbers are those that it decodes to.

    Raises:
        MessageError: The body does not fit the header.
    """
    tensors = _tensors(header, body)
    shown = {
        item.name: getattr(header, item.name)
        for item in fields(Header)
        if item.name not in _LEFT_OUT
    }
    return {
        "bytes": len(message.pack_head(header)) + header.body_bytes,
        "header": shown,
        "tensors": tensors,
        "norm": math.sqrt(sum(tensor["norm"] ** 2 for tensor in tensors)),
    }


def format_update(found: Mapping[str, Any]) -> Iterable[str]:
    """The disclosure as lines of text; a long table of counts, such as those of scores, by its length."""
    shown, tensors = found["header"], found["tensors"]
    yield f"{found['bytes']:,} bytes: {len(tensors)} tensors, L2 norm {found['norm']:.6g}, and the header"
    for name, value in shown.items():
        text = dumps(_short(value)) if isinstance(value, Mapping) else str(value)
        yield f"  {name:14} {text or '-'}"
    for tensor in tensors:
        shape = "x".join(map(str, tensor["shape"])) or "scalar"
        yield (
            f"  tensor {tensor['name']}: {tensor['dtype']} {shape}, {tensor['nbytes']:,} bytes, "
            f"L2 norm {tensor['norm']:.6g}, largest {tensor['largest']:.6g}"
        )


def _short(value: Any) -> Any:
    """A value whose long tables are counted; those who want each number ask for JSON."""
    if isinstance(value, Mapping):
        return {name: _short(one) for name, one in value.items()}
    numbers = list(_numbers(value))
    if not isinstance(value, (list, tuple)) or len(numbers) <= _SHOWN:
        return value
    counted = sum(1 for one in numbers if one)
    return f"{len(numbers)} numbers, {counted} of them not 0 (--json shows them)"


def _numbers(value: Any) -> Iterable[Any]:
    if isinstance(value, (list, tuple)):
        for one in value:
            yield from _numbers(one)
    else:
        yield value


def _tensors(header: Header, body: memoryview) -> list[dict[str, Any]]:
    specs = Manifest(tuple(_spec(header.codec, entry) for entry in header.tensors))
    blocks = codec.DecodedBlocks(header.codec, specs, body)
    found = []
    for spec, entry in zip(specs.tensors, header.tensors, strict=True):
        norm, largest = _size(blocks(spec))
        found.append(
            {**entry._asdict(), "shape": list(entry.shape), "norm": norm, "largest": largest}
        )
    return found


def _size(blocks: Iterable[np.ndarray[Any, Any]]) -> tuple[float, float]:
    """L2 norm and largest magnitude."""
    squares, largest = 0.0, 0.0
    for whole in blocks:
        for start in range(0, whole.size, _BLOCK):
            part = np.abs(whole[start : start + _BLOCK].astype(np.float64))
            squares += float((part * part).sum())
            largest = max(largest, float(part.max()))
    return math.sqrt(squares), largest


def _spec(encoding: str, entry: TensorEntry) -> TensorSpec:
    """A tensor by how it travels: a codec leaves everything but parameters as it is."""
    kind: Kind = "float_buffer"
    if entry.dtype == "int64":
        kind = "integer_buffer"
    elif entry.name.startswith(EXTRA):
        kind = "extra"
    elif entry.dtype == codec.wire_dtype(encoding, TensorSpec("", (), "parameter")):
        kind = "parameter"
    return TensorSpec(entry.name, entry.shape, kind)
