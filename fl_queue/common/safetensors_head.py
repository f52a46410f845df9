"""The beginning of a safetensors file, for those that write its tensors themselves, piece by piece."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fl_queue.common.safe_json import dumps


def safetensors_head(entries: Mapping[str, Any]) -> bytes:
    """
    The bytes before the tensors: length, and JSON that ends where a tensor may be aligned.

    Args:
        entries: Name -> ``dtype``, ``shape`` and ``data_offsets``; texts under ``__metadata__``.

    Source: the format's page, https://github.com/huggingface/safetensors#format.
    """
    text = dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
