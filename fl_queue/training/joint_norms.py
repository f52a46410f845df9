"""
BatchNorm over the samples of all processes that train one model: statistics of the whole batch, as on one device.

torch's ``SyncBatchNorm`` is another module, and runs on CUDA devices only. Imports torch. No Redis here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fl_queue.errors import ConfigError
from fl_queue.training.model_tensors import BATCH_NORM_LAYERS
from fl_queue.training.ranks import Ranks


class JointNorms:
    """
    The BatchNorm layers of a model in a training by several processes.

    Args:
        model: In training; its layers stay those that they are, with another ``forward`` meanwhile.
        ranks: Of the training.

    Raises:
        ConfigError: A layer has a ``forward`` of its own, and a training mode; names it.
    """

    def __init__(self, model: nn.Module, ranks: Ranks) -> None:
        self._ranks, self._layers = ranks, _layers(model)
        #: Whether the samples of this process count in the batch.
        self.counts = True

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Have the layers normalise by the statistics of all processes within this block."""
        for layer in self._layers:
            setattr(layer, "forward", partial(self._forward, layer))  # noqa: B010
        try:
            yield
        finally:
            for layer in self._layers:
                delattr(layer, "forward")

    def _forward(self, layer: Any, batch: Tensor) -> Tensor:
        """
        Normalise (B, C, ...) by mean and variance over all processes, and follow them as torch does.

        Source:
            Ioffe and Szegedy 2015, arXiv 1502.03167, Algorithm 1.
        """
        if not (layer.training or (layer.running_mean is None and layer.running_var is None)):
            return _BatchNorm.forward(layer, batch)
        layer._check_input_dim(batch)
        # Sums of numbers of 16 bits would lose what they are for.
        wide = batch if batch.dtype == torch.float64 else batch.float()
        over = [axis for axis in range(batch.ndim) if axis != 1]
        weight = 1.0 if self.counts else 0.0
        mine = wide.new_tensor([weight * batch.numel() / max(batch.shape[1], 1)])
        found = self._sum(torch.cat([wide.sum(over) * weight, mine]))
        count = found[-1].detach()
        mean = found[:-1] / count
        centred = wide - _shaped(mean, batch)
        variance = self._sum((centred * centred).sum(over) * weight) / count
        if layer.training and layer.track_running_stats:
            _follow(layer, mean.detach(), variance.detach(), count)
        result = centred * _shaped(torch.rsqrt(variance + layer.eps), batch)
        if layer.affine:
            result = result * _shaped(layer.weight, batch) + _shaped(layer.bias, batch)
        return result.to(batch.dtype)

    def _sum(self, tensor: Tensor) -> Tensor:
        summed: Tensor = _Sum.apply(tensor, self._ranks)
        return summed


class _Sum(torch.autograd.Function):
    """The sum over all processes; each of their losses depends on it, so its gradient is a sum over them, too."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, ranks: Ranks) -> Tensor:
        """The sum of a tensor."""
        ctx.ranks = ranks
        summed = tensor.clone().contiguous()
        ranks.sum(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """The sum of a gradient."""
        summed = gradients[0].clone().contiguous()
        ctx.ranks.sum(summed)
        return summed, None


def _layers(model: nn.Module) -> list[nn.Module]:
    found: list[nn.Module] = []
    for name, layer in model.named_modules():
        if not isinstance(layer, BATCH_NORM_LAYERS):
            continue
        if type(layer).forward not in (_BatchNorm.forward, nn.SyncBatchNorm.forward):
            raise ConfigError(
                "run.task",
                f"{name or 'the model'} is a BatchNorm with a forward of its own ({type(layer).__name__}), whose "
                "statistics --devices cannot take over all devices; train on one device",
                public=True,
            )
        found.append(layer)
    return found


def _shaped(of_channels: Tensor, batch: Tensor) -> Tensor:
    """(C,) as (1, C, 1, ...)."""
    return of_channels.reshape(1, -1, *[1] * (batch.ndim - 2))


@torch.no_grad()
def _follow(layer: Any, mean: Tensor, variance: Tensor, count: Tensor) -> None:
    """The running statistics after a batch of ``count`` numbers in each channel."""
    layer.num_batches_tracked.add_(1)
    share = layer.momentum
    if share is None:
        share = 1.0 / float(layer.num_batches_tracked)
    unbiased = variance * (count / (count - 1))
    layer.running_mean.lerp_(mean.to(layer.running_mean.dtype), share)
    layer.running_var.lerp_(unbiased.to(layer.running_var.dtype), share)
