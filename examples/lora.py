"""
Tune a large model by small adapters: the base is frozen, and clients send the adapters alone.

A task for ``run.task = "lora:Adapted"``; ``lora.toml`` is its config. In this folder:

    fl-queue try-task lora.toml
    fl-queue start-round lora.toml

LoRA: Hu et al. 2021, arXiv 2106.09685, equation 3.
"""

import torch
from torch import Tensor, nn

from fl_queue.tasks.mnist import TwoLayerPerceptron


class LowRank(nn.Module):
    """``W x + b + (alpha / r) B A x``, where only A (r, in) and B (out, r) are trained."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.base, self.scale = base.requires_grad_(False), alpha / rank
        self.a = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        # Zero: at the beginning the model is what its base is.
        self.b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        """Add the adapter's output to that of the base; ``x`` is ``(B, in_features)``."""
        low: Tensor = self.base(x) + self.scale * (x @ self.a.T @ self.b.T)
        return low


class Adapted(TwoLayerPerceptron):
    """MNIST's 2NN with adapters of rank ``task.rank``; load a trained base where this one is built."""

    def build_model(self) -> nn.Module:
        """Replace each linear layer by one with an adapter."""
        model, rank = super().build_model(), int(self.options.get("rank", 4))
        for name, layer in list(model.named_children()):
            if isinstance(layer, nn.Linear):
                setattr(model, name, LowRank(layer, rank, alpha=2.0 * rank))
        return model
