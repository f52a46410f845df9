"""Use of a model without fl-queue: its inputs and outputs. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ModelUsage:
    """
    A task's description of its model, for a model card and for the metadata of an ONNX file.

    Args:
        input: In words: shape, dtype, and what is done to raw data before.
        output: In words: shape and meaning.
        labels: What the classes are called, in the order of the outputs; empty: not known.
        details: More by name, as JSON has it: columns, side of an image.
    """

    input: str
    output: str
    labels: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
