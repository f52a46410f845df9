"""Normalisation of pixels as a module in front of a model, so that an exported model takes raw pixels."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

#: Mean and standard deviation of red, green, blue with which torchvision's weights were trained.
#: Source: ``torchvision.models.ResNet18_Weights.IMAGENET1K_V1.transforms()``, the same for all its models here.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Normalise(nn.Module):
    """
    Pixels minus a mean, over a standard deviation, channel by channel; (B, channels, H, W).

    Its numbers are no part of the model's tensors: they do not travel, and no site changes them.
    """

    def __init__(self, means: tuple[float, ...], deviations: tuple[float, ...]) -> None:
        super().__init__()
        shape = (1, len(means), 1, 1)
        self.register_buffer("means", torch.tensor(means).reshape(shape), persistent=False)
        self.register_buffer(
            "deviations", torch.tensor(deviations).reshape(shape), persistent=False
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """The normalised pixels, of the same shape."""
        means, deviations = self.get_buffer("means"), self.get_buffer("deviations")
        return (pixels - means) / deviations


def normalised(net: nn.Module) -> nn.Module:
    """The model with ImageNet's normalisation in front; the names of its tensors begin with ``net.``."""
    return nn.Sequential(OrderedDict(normalise=Normalise(*IMAGENET), net=net))
