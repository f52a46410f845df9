"""
Mixed precision: local SGD's forward passes in fewer bits, its parameters and steps in float32.

Imports torch. No Redis here.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fl_queue.errors import ConfigError

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
#: What a float16 loss is multiplied by at first.
_FIRST_SCALE = 2.0**10


class Stepper(Protocol):
    """An optimizer, as far as it matters here."""

    parameters: list[nn.Parameter]

    def step(self) -> None:
        """Update the parameters from their gradients."""


class Precision:
    """
    Number formats of one training.

    With ``bfloat16`` and ``float16`` torch's autocast runs what gains by it (matrix products,
    convolutions) in that dtype. Gradients of float16 underflow, so the loss is scaled up before they
    are computed and they are scaled down before the step, which is left out where one overflowed.
    With ``float32`` nothing of torch is touched: the bits are those of plain training.

    Args:
        name: As ``train.precision``.
        device: ``cpu``, ``cuda``, ``cuda:1``, ...
        scaled: Whether the loss is scaled; None: with float16.

    Raises:
        ConfigError: float16 anywhere but on a CUDA device, where nothing gains by it.

    Source:
        Micikevicius et al. 2018, arXiv 1710.03740.
    """

    def __init__(self, name: str, device: str, scaled: bool | None = None) -> None:
        self._type, self._dtype = torch.device(device).type, _DTYPES.get(name)
        if name == "float16" and self._type != "cuda":
            raise ConfigError(
                "train.precision",
                f"float16 needs a CUDA device, and this worker trains on {device}; use bfloat16, or "
                "start the worker with --device cuda",
                public=True,
            )
        is_scaled = name == "float16" if scaled is None else scaled
        # torch's own begins at 2**16 and finds its scale by skipping steps: as many in each round, of
        # which a client with few steps has no others.
        self._scaler = torch.amp.GradScaler(self._type, _FIRST_SCALE) if is_scaled else None
        #: Steps that were left out, as a gradient overflowed.
        self.skipped = 0

    def forward(self) -> AbstractContextManager[Any]:
        """Around one forward pass and its loss; a new one for each, as casts of weights are kept in it."""
        return torch.autocast(self._type, self._dtype) if self._dtype else nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradients, scaled where that is needed until the step."""
        scaled = loss if self._scaler is None else self._scaler.scale(loss)
        # torch's own stub of backward has no annotation.
        scaled.backward()  # type: ignore[no-untyped-call]

    def scale(self) -> tuple[float, float] | None:
        """What the loss is multiplied by, and how many steps that has been so; None: it is not scaled."""
        if self._scaler is None:
            return None
        return self._scaler.get_scale(), float(self._scaler.state_dict()["_growth_tracker"])

    def go_on_from(self, scale: tuple[float, float]) -> None:
        """Scale as an earlier training did at its end. Args: ``scale``: as ``scale`` returned it."""
        if self._scaler is not None:
            found = {"scale": scale[0], "_growth_tracker": int(scale[1])}
            self._scaler.load_state_dict(self._scaler.state_dict() | found)

    def step(self, optimizer: Stepper) -> None:
        """Take a step, unless a scaled gradient overflowed."""
        if self._scaler is None:
            optimizer.step()
            return
        adapter: Any = _Scalable(optimizer)
        self._scaler.unscale_(adapter)
        self._scaler.step(adapter)
        before = self._scaler.get_scale()
        self._scaler.update()
        self.skipped += self._scaler.get_scale() < before


class _Scalable:
    """A stepper as torch's ``GradScaler`` wants it."""

    def __init__(self, optimizer: Stepper) -> None:
        self.step: Callable[[], None] = optimizer.step
        self.param_groups = [{"params": optimizer.parameters}]
