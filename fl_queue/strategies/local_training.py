"""
A strategy's part in one client's training: the term in its gradients, what it may know, and its answer.

No Redis and no torch here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fl_queue.protocol.tensor_layout import Tensor

#: Name of a state -> tensor name -> array.
State = Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True)
class Correction:
    """
    Term added to each gradient of local training, before momentum.

    ``gradient + proximal * (w - base) + offset``; where both are nothing, no bit changes.

    Args:
        proximal: Pull towards the base version.
        offset: Parameter name -> array to add; None: nothing.
    """

    proximal: float = 0.0
    offset: Callable[[str], Tensor] | None = None


@dataclass(frozen=True)
class ClientTrainingState:
    """
    State of a client before it trains.

    Args:
        learning_rate: Of this round.
        momentum: Of its local SGD.
        server: The state that the strategy has clients fetch; missing tensors are zero.
        kept: The client's own state after the newest round that accepted its update; empty: none.
        steps: Local steps taken, ``tau``; 0 before training.
        gradient_sum: How often its gradients count in ``y - x``, over the learning rate: ``||a||_1`` as its
            optimizer took its steps; 0: not followed, it is that of ``steps`` of SGD at one rate.
        base_loss: Mean loss of the base version on its training data; only where it is asked for.
        change: Parameter name -> ``y - x``, float32, once it has trained.
        parameters: Names of the parameters that it shares.
        exponent: The round's, for a strategy that has one.
    """

    learning_rate: float
    momentum: float = 0.0
    server: State = field(default_factory=dict)
    kept: State = field(default_factory=dict)
    steps: int = 0
    gradient_sum: float = 0.0
    base_loss: float = 0.0
    change: Callable[[str], Tensor] = lambda name: np.zeros(0, np.float32)
    parameters: Sequence[str] = ()
    exponent: int = 0

    def state_of(self, state: State, which: str, name: str) -> Tensor | np.float32:
        """An array of a state, or zero where there is none."""
        return state.get(which, {}).get(name, np.float32(0.0))


@dataclass(frozen=True)
class ClientContribution:
    """
    Result of a client's training.

    Args:
        factor: Its differences are sent times this (parameters only).
        scalars: Name -> what it sends besides.
        extra: ``(extra, parameter) -> array`` of what it sends besides; asked once for each.
        keep: ``(state, parameter) -> array`` of what it keeps once its update is accepted.
    """

    factor: float = 1.0
    scalars: Mapping[str, float] = field(default_factory=dict)
    extra: Callable[[str, str], Tensor] | None = None
    keep: Callable[[str, str], Tensor] | None = None
