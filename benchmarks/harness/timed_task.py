"""
A task whose clients take a given time: a real machine's speed is not what is compared.

A worker must allow it: ``--task-allow benchmarks.harness.timed_task:*``.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from torch import nn

from fl_queue.tasks.base import ClientData, OnEpoch
from fl_queue.tasks.context import ClientContext
from fl_queue.tasks.mnist import TwoLayerPerceptron


class Paced(TwoLayerPerceptron):
    """
    MNIST 2NN, trained as it is; then the client sleeps until its time is over.

    Options: ``task.pace_s``, seconds a job takes; ``task.slow``, the clients that take ``task.factor``
    times as long, separated by spaces.
    """

    def train(
        self, model: nn.Module, data: ClientData, context: ClientContext, on_epoch: OnEpoch
    ) -> Mapping[str, Any]:
        """Train, then sleep for the rest of the time."""
        until = time.monotonic() + self._pace_s(context.client)
        made = super().train(model, data, context, on_epoch)
        time.sleep(max(0.0, until - time.monotonic()))
        return made

    def _pace_s(self, client: str) -> float:
        slow = client in str(self.options["slow"]).split()
        return float(self.options["pace_s"]) * (float(self.options["factor"]) if slow else 1.0)
