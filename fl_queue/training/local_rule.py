"""
Inputs of a local training that no config has: the strategy's terms, and the site's floor of samples.

Imports torch. No Redis here.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


class LocalRule:
    """
    Inputs of local SGD that are not in the config: the strategy's addition to each gradient, the site's floor.

    ``gradient + proximal * (w - anchor) + offset``, before momentum; with neither no bit changes.

    Args:
        proximal: Pull towards the anchors.
        anchors, offsets: By parameter, on its device; a parameter that is not there gets nothing.
        fewest: Samples of which the site makes a step and an update, see ``rows``; 1: any.
    """

    def __init__(
        self,
        proximal: float = 0.0,
        anchors: Mapping[nn.Parameter, Tensor] | None = None,
        offsets: Mapping[nn.Parameter, Tensor] | None = None,
        fewest: int = 1,
    ) -> None:
        self.fewest = fewest
        self.proximal, self.anchors, self.offsets = proximal, anchors or {}, offsets or {}
        #: Whether local SGD knew of it: a task may train in another way.
        self.is_used = False
        self.steps = 0

    def corrected(self, parameter: nn.Parameter, gradient: Tensor) -> Tensor:
        """The gradient with what is added."""
        if parameter in self.anchors:
            gradient = gradient.add(parameter - self.anchors[parameter], alpha=self.proximal)
        if parameter in self.offsets:
            gradient = gradient.add(self.offsets[parameter])
        return gradient
