"""
Smallest number of rows in one update: ``fl-queue worker client --min-batch``.

A config chooses the batch size, the learning rate and the weight decay. With steps of one row and a
weight decay of one over the learning rate, each step cancels the earlier ones, and the update of a linear
model is the last row. With a learning rate that saturates the outputs, only misclassified rows have a
gradient. The first is refused before a step is made, the second before the update is sent. Imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fl_queue.errors import ConfigError, UpdateWithheld
from fl_queue.training.batches import leaves

#: A row counts if its part is at least this fraction of the largest part.
COUNTS = 1e-3


def check_batch(min_rows: int, batch_size: int, accumulate: int) -> None:
    """
    Check that a step has enough rows.

    Args:
        min_rows: Minimum of the site; 1: none.
        batch_size: Rows of a batch.
        accumulate: Batches of a step.

    Raises:
        ConfigError: A step has fewer rows.
    """
    if batch_size * accumulate < min_rows:
        raise ConfigError(
            "train.batch_size",
            f"{batch_size} (times train.accumulate {accumulate}) is fewer than the {min_rows} examples of which "
            "this site makes a step; raise it, or have the site lower --min-batch",
            public=True,
        )


def check_pull(learning_rate: float, weight_decay: float, proximal: float) -> None:
    """
    Check that a step does not cancel the earlier ones.

    Raises:
        ConfigError: Each step replaces the model.
    """
    if learning_rate * (weight_decay + proximal) >= 1:
        what = "train.weight_decay" if weight_decay >= proximal else "strategy"
        raise ConfigError(
            what,
            f"train.learning_rate {learning_rate:g} times weight decay and proximal strength "
            f"{weight_decay + proximal:g} is 1 or more: each step forgets those before it, and the update is the "
            "last batch alone; lower one of them, or have the site lower --min-batch",
            public=True,
        )


@dataclass(frozen=True)
class Steps:
    """
    Settings of the steps of a training, as far as they decide how each one enters the result.

    Args:
        rates: Learning rate of each step.
        momentum: Of SGD.
        pull: Sum of weight decay and proximal strength.
        nesterov: Whether the momentum is Nesterov's.
        ema: Decay of the running mean that is the result; 0: the last weights are.
    """

    rates: Sequence[float]
    momentum: float = 0.0
    pull: float = 0.0
    nesterov: bool = False
    ema: float = 0.0


class Parts:
    """
    Part of each row in the update of a training, estimated from the model's outputs.

    A row's part is the norm of the loss's gradient by its output, times the factor with which its step
    enters the result: weight decay and proximal pull make earlier steps smaller, momentum makes them
    larger. A model that copies single inputs into single parameters is not detected.

    Args:
        count: Rows.
        steps: Number of steps of the training.
        learning_rate, momentum: Settings of the training.
        pull: Sum of weight decay and proximal strength.
        device: Device of the model.
    """

    def __init__(
        self,
        count: int,
        steps: int,
        learning_rate: float,
        momentum: float,
        pull: float,
        device: str,
    ) -> None:
        self._left = _left(Steps([learning_rate] * steps, momentum, pull))
        self._parts = torch.zeros(count, device=device)
        self._step: list[tuple[Tensor, Tensor]] = []
        #: Whether every output had a row for each row of its batch.
        self.is_known = True

    @classmethod
    def of(cls, count: int, steps: Steps, device: str) -> Parts:
        """The same for steps that differ from each other."""
        found = cls(count, 0, 0.0, steps.momentum, steps.pull, device)
        found._left = _left(steps)
        return found

    def watch(self, output: object, rows: Tensor) -> None:
        """
        Record the gradients by the outputs of these rows (B,) when they are computed.

        Args:
            output: (B, ...), or several such in a mapping or tuple; a mean loss among them has no rows.
        """
        found = [one for one in leaves(output) if isinstance(one, Tensor) and one.requires_grad]
        of_rows = [one for one in found if one.ndim > 0]
        if not isinstance(output, Tensor) or output.ndim == 0:
            self.is_known = self.is_known and bool(of_rows)
        elif len(output) != len(rows):
            self.is_known = False
        if any(len(one) != len(rows) for one in of_rows):
            self.is_known = False
            return
        for one in of_rows:
            # A hook's result would take the gradient's place, so it has none. Untyped in torch's stub.
            one.register_hook(lambda gradient: self._note(gradient, rows))  # type: ignore[no-untyped-call]

    def _note(self, gradient: Tensor, rows: Tensor) -> None:
        norms = torch.linalg.vector_norm(gradient.reshape(len(rows), -1), dim=1)
        self._step.append((rows, norms.float()))

    def stepped(self, factor: Tensor | float = 1.0) -> None:
        """Add the recorded gradients as one step. Args: ``factor``: scale of the step by clipping."""
        left = self._left.pop()
        for rows, norms in self._step:
            self._parts.index_add_(0, rows.to(norms.device), norms * (left * factor))
        self._step.clear()

    def skipped(self) -> None:
        """Drop the recorded gradients of a step that was not made."""
        self._left.pop()
        self._step.clear()

    def join(self, add_up: Callable[[Tensor], None]) -> None:
        """
        Add the parts of the rows that other processes have trained with.

        Args:
            add_up: Puts the sum over all processes into a tensor.
        """
        unknown = torch.tensor([0.0 if self.is_known else 1.0], device=self._parts.device)
        add_up(self._parts)
        add_up(unknown)
        self.is_known = not bool(unknown)

    def counting(self) -> int:
        """Count the rows whose part counts; all rows if it is unknown."""
        largest = self._parts.max() if len(self._parts) else torch.zeros(())
        # Non-finite values are refused elsewhere, with a better message.
        if not self.is_known or not torch.isfinite(largest) or not largest:
            return len(self._parts)
        return int((self._parts >= COUNTS * largest).sum())

    def check(self, min_rows: int) -> None:
        """
        Check that an update is made of enough rows.

        Raises:
            UpdateWithheld: It is made of fewer. The next round's update may have enough, so this error is not permanent.
        """
        if self.counting() < min(min_rows, len(self._parts)):
            raise UpdateWithheld(
                f"of the examples trained with, fewer than {min_rows} make up this update: the model is certain of the "
                "others; lower train.learning_rate, end the run earlier, look at the scale of the inputs, or have the "
                "site lower --min-batch"
            )


def _left(steps: Steps) -> list[float]:
    """
    Factors with which the steps' gradients enter the result, the last step first.

    ``u = pull w + g``, ``v <- momentum v + u`` and ``w <- w - rate v`` (Nesterov: ``rate (u + momentum v)``),
    backwards from the end. The result is the last ``w``, or its running mean.
    """
    momentum, nesterov = steps.momentum, steps.nesterov
    model = 0.0 if steps.ema else 1.0
    velocity, weight, left = 0.0, 1.0 - steps.ema, []
    for rate in reversed(steps.rates):
        if steps.ema:
            model, weight = model + weight, weight * steps.ema
        # How the result depends on this step's ``v``, and through it and by itself on its ``u``.
        in_velocity = velocity - rate * model * (momentum if nesterov else 1.0)
        part = in_velocity - rate * model if nesterov else in_velocity
        left.append(abs(part))
        model, velocity = model + steps.pull * part, momentum * in_velocity
    return left
