"""
How few rows of a site's data one update may be made of: ``fl-queue worker client --min-batch``.

A config chooses the batch size, the learning rate and what pulls a model back to where it was. With
steps of one row and a weight decay of one over the learning rate, each step forgets those before it, and
the update of a linear model is the last row. A learning rate that makes every answer certain has all
rows but those that are answered wrongly add nothing. The floor refuses the first before a step is made, and
the second before the update is sent. Imports torch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fl_queue.errors import ConfigError, UpdateWithheld

#: A row counts when its part in the update is at least this of the largest part of a row.
COUNTS = 1e-3


def check_batch(fewest: int, batch_size: int, accumulate: int) -> None:
    """
    Refuse a config whose steps are of too few rows.

    Args:
        fewest: What the site allows; 1: anything.

    Raises:
        ConfigError: They are of fewer.
    """
    if batch_size * accumulate < fewest:
        raise ConfigError(
            "train.batch_size",
            f"{batch_size} (times train.accumulate {accumulate}) is fewer than the {fewest} examples of which "
            "this site makes a step; raise it, or have the site lower --min-batch",
            public=True,
        )


def check_pull(learning_rate: float, weight_decay: float, proximal: float) -> None:
    """
    Refuse a config whose steps forget those before them.

    Raises:
        ConfigError: One step replaces the model.
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


class Parts:
    """
    Each row's part in the change of a training, as far as the model's outputs show it.

    A row's part is the norm of the loss's gradient by its output, times how much of a step is left in
    the end: weight decay and proximal pull make earlier steps smaller, momentum makes them larger. A
    model that copies single inputs into single parameters is not seen by this.

    Args:
        count: Rows.
        steps: Of the whole training.
        learning_rate, momentum: As of the training.
        pull: Weight decay and proximal strength together.
        device: Of the model.
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
        self._parts = torch.zeros(count, device=device)
        self._left = _left(steps, learning_rate, momentum, pull)
        self._step: list[tuple[Tensor, Tensor]] = []
        #: Whether every output had a row for each row of its batch.
        self.is_known = True

    def watch(self, output: object, rows: Tensor) -> None:
        """Note the gradient by an output (B, ...) of these rows (B,), once it is computed."""
        fits = isinstance(output, Tensor) and output.ndim > 0 and len(output) == len(rows)
        if not fits:
            self.is_known = False
            return
        assert isinstance(output, Tensor)
        if output.requires_grad:
            # A hook's result would take the gradient's place, so it has none. Untyped in torch's stub.
            output.register_hook(lambda gradient: self._note(gradient, rows))  # type: ignore[no-untyped-call]

    def _note(self, gradient: Tensor, rows: Tensor) -> None:
        norms = torch.linalg.vector_norm(gradient.reshape(len(rows), -1), dim=1)
        self._step.append((rows, norms.float()))

    def stepped(self, factor: Tensor | float = 1.0) -> None:
        """A step was made of what was noted since the last one. Args: ``factor``: what clipping left of it."""
        left = self._left.pop()
        for rows, norms in self._step:
            self._parts.index_add_(0, rows.to(norms.device), norms * (left * factor))
        self._step.clear()

    def skipped(self) -> None:
        """No step was made of what was noted."""
        self._left.pop()
        self._step.clear()

    def counting(self) -> int:
        """Number of rows whose part counts; all of them where it is unknown."""
        largest = self._parts.max() if len(self._parts) else torch.zeros(())
        # Values that are not finite are refused elsewhere, with a better message.
        if not self.is_known or not torch.isfinite(largest) or not largest:
            return len(self._parts)
        return int((self._parts >= COUNTS * largest).sum())

    def check(self, fewest: int) -> None:
        """
        Refuse to send an update that shows fewer rows than the site wants.

        Raises:
            UpdateWithheld: It shows fewer. The next round's update may show enough, so it is no lasting error.
        """
        if self.counting() < min(fewest, len(self._parts)):
            raise UpdateWithheld(
                f"of the examples trained with, fewer than {fewest} make up this update: the model is certain of the "
                "others; lower train.learning_rate, end the run earlier, look at the scale of the inputs, or have the "
                "site lower --min-batch"
            )


def _left(steps: int, learning_rate: float, momentum: float, pull: float) -> list[float]:
    """
    How much of each step's gradient the trained model has, the last step first out of ``pop`` last.

    ``v <- momentum v + pull w + g`` and ``w <- w - rate v``, backwards from the end.
    """
    model, velocity, left = 1.0, 0.0, []
    for _ in range(steps):
        part = velocity - learning_rate * model
        left.append(abs(part))
        model, velocity = model + pull * part, momentum * part
    return left
