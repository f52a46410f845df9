"""How often gradients count in an update: against SGD itself, in every combination of its options."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from fl_queue.strategies.gradient_sum import GradientSum, accumulated
from fl_queue.training.schedules import Schedule

RATE, STEPS = 0.3, 23
COMBINATIONS = [
    (momentum, nesterov, kind, warmup, mu)
    for momentum, nesterov, (kind, warmup), mu in product(
        (0.0, 0.5, 0.9),
        (False, True),
        (("constant", 0.0), ("linear", 0.2), ("cosine", 0.3), ("constant", 1.0)),
        (0.0, 0.7),
    )
    if momentum or not nesterov
]


@pytest.mark.parametrize(("momentum", "nesterov", "kind", "warmup", "mu"), COMBINATIONS)
def test_the_sum_is_that_of_the_weights_with_which_gradients_enter_the_update(
    momentum: float, nesterov: bool, kind: str, warmup: float, mu: float
) -> None:
    factors = Schedule(kind, warmup, STEPS).factors()
    counted = GradientSum(RATE * mu)
    for factor in factors:
        counted.step(factor, momentum, nesterov)

    # A gradient of its own dimension in each step: y is then minus what each of them counts.
    y, velocity = np.zeros(STEPS), np.zeros(STEPS)
    for step, factor in enumerate(factors):
        change = np.eye(STEPS)[step] + mu * y
        velocity = momentum * velocity + change
        y = y - RATE * factor * (change + momentum * velocity if nesterov else velocity)

    assert abs(counted.total * RATE + y.sum()) < 1e-12


def test_at_one_rate_it_is_the_sum_of_so_many_steps() -> None:
    counted = GradientSum(0.01)
    for _ in range(7):
        counted.step(momentum=0.9)

    assert counted.total == accumulated(7, 0.9, 0.01)
    assert accumulated(4) == 4.0
