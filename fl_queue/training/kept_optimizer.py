"""
The state of a client's optimizer, from one of its accepted updates to its next training.

Imports torch. No Redis here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fl_queue.config.optimizer_catalog import SCALE, STEP

#: Parameter -> name, as torch has it, -> what an optimizer keeps.
OptimizerState = Mapping[nn.Parameter, Mapping[str, Any]]


class Stateful(Protocol):
    """An optimizer, as far as it matters here."""

    def state(self) -> Mapping[nn.Parameter, Mapping[str, Any]]:
        """What it keeps of each parameter that it has updated."""

    def restore(self, state: Mapping[nn.Parameter, Mapping[str, Any]]) -> None:
        """Go on from a state."""


class Scaled(Protocol):
    """What scales a loss of float16, as far as it matters here."""

    def scale(self) -> tuple[float, float] | None:
        """The factor, and how many steps it has been so; None: nothing is scaled."""

    def go_on_from(self, scale: tuple[float, float]) -> None:
        """Go on from a factor."""


class KeptOptimizer:
    """
    What an optimizer begins a training with, and what it leaves.

    A training of several parts, each with an optimizer of its own, hands the state of a parameter from part to part.

    Args:
        names: What is kept of each parameter, as ``config.optimizer_catalog.kept_state`` lists it.
        parameters: The model's trained parameters by name.
        found: ``<name>/<parameter>`` -> array, of the last accepted update; empty: the optimizer begins anew.
    """

    def __init__(
        self,
        names: Collection[str],
        parameters: Mapping[str, nn.Parameter],
        found: Mapping[str, NDArray[Any]],
    ) -> None:
        self._parameters = parameters
        self._state: dict[nn.Parameter, dict[str, Any]] = {}
        self._scale: tuple[float, float] | None = None
        #: Whether a training has used it.
        self.is_used = False
        if not found:
            return
        for name, parameter in parameters.items():
            arrays = {one: found[f"{one}/{name}"] for one in names if one != SCALE}
            # It has had no step, and what an optimizer begins with need not be zero.
            if STEP in arrays and not float(arrays[STEP]):
                continue
            self._state[parameter] = {
                one: _tensor(one, array, parameter) for one, array in arrays.items()
            }
        if SCALE in found and found[SCALE][0] > 0:
            self._scale = float(found[SCALE][0]), float(found[SCALE][1])

    def restore(
        self, optimizer: Stateful, held: Collection[nn.Parameter], scaled: Scaled | None = None
    ) -> None:
        """
        Have an optimizer that was just made go on.

        Args:
            held: The parameters that it has.
            scaled: Of its gradients.
        """
        self.is_used = True
        optimizer.restore({one: self._state[one] for one in held if one in self._state})
        if scaled is not None and self._scale is not None:
            scaled.go_on_from(self._scale)

    def keep(self, optimizer: Stateful, scaled: Scaled | None = None) -> None:
        """Take an optimizer's state at the end of its training."""
        self._state |= {one: dict(found) for one, found in optimizer.state().items()}
        if scaled is not None:
            self._scale = scaled.scale() or self._scale

    def array(self, name: str) -> NDArray[Any]:
        """What is kept as ``<name>/<parameter>``: float32, of the parameter's shape; zero where there was no step."""
        if name == SCALE:
            return np.array(self._scale or (0.0, 0.0), np.float32)
        which, _, owner = name.partition("/")
        parameter = self._parameters[owner]
        found = self._state.get(parameter, {}).get(which)
        if found is None:
            return np.zeros(() if which == STEP else tuple(parameter.shape), np.float32)
        if not isinstance(found, Tensor):
            return np.array(found, np.float32)
        return np.asarray(found.detach().to("cpu", torch.float32).numpy())


def _tensor(name: str, array: NDArray[Any], parameter: nn.Parameter) -> Tensor:
    """A kept array as torch's optimizers have it: the number of steps on the CPU, others beside their parameter."""
    made = torch.from_numpy(np.array(array, np.float32))
    return made if name == STEP else made.to(parameter.device, parameter.dtype)
