"""Copies of a model's tensors."""

from __future__ import annotations

from torch import nn

from fl_queue.protocol.manifest import Manifest
from fl_queue.training.model_tensors import Arrays, views_of


def arrays_of(model: nn.Module, manifest: Manifest) -> Arrays:
    """Copies of a model's tensors, as ``views_of`` has them."""
    return {name: array.copy() for name, array in views_of(model, manifest).items()}
