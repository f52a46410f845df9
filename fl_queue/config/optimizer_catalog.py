"""
The optimizers of a client by name: their options, and the state that they keep of each parameter.

Kept apart from ``fl_queue.training`` so that a config can be checked without importing torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fl_queue.common.options import Option, check_travels
from fl_queue.common.spelling import nearest
from fl_queue.errors import ConfigError

#: In ``train.no_decay``: parameters of normalisation layers, whatever their names.
NORM = "@norm"
#: In ``train.no_decay``: parameters whose last name is ``bias``.
BIAS = "@bias"
#: Of a kept state: the number of steps of each parameter, as torch names it.
STEP = "step"
#: Of a kept state: what a float16 loss is multiplied by, and how many steps that has been so.
SCALE = "~scale"


@dataclass(frozen=True)
class OptimizerEntry:
    """
    An optimizer.

    Args:
        doc: One line for users.
        options: What ``train.optimizer_options`` may hold.
        takes_momentum: Whether ``train.momentum`` is an option of it.
        state: Tensors like a parameter that it keeps of each one, as torch names them.
        counts: Whether it keeps the number of steps of each parameter.
    """

    doc: str
    options: Mapping[str, Option] = field(default_factory=dict)
    takes_momentum: bool = False
    state: tuple[str, ...] = ()
    counts: bool = True


def _two(value: tuple[float, ...]) -> str | None:
    is_pair = len(value) == 2 and all(0 <= item < 1 for item in value)
    return None if is_pair else f"{list(value)} is not two numbers in [0, 1), such as [0.9, 0.999]"


def _betas(first: float, second: float) -> Option:
    return Option("floats", (first, second), "decay of the two means, each in [0, 1)", check=_two)


def _eps(default: float) -> Option:
    return Option("float", default, "added to the root before it divides, above 0", above=0)


_ADAM = {
    "betas": _betas(0.9, 0.999),
    "eps": _eps(1e-8),
    "amsgrad": Option("bool", False, "divide by the largest second mean so far"),
}

OPTIMIZERS: dict[str, OptimizerEntry] = {
    "sgd": OptimizerEntry(
        "stochastic gradient descent, with train.momentum",
        {"nesterov": Option("bool", False, "Nesterov's momentum; needs train.momentum above 0")},
        takes_momentum=True,
        counts=False,
    ),
    "adam": OptimizerEntry(
        "Adam; its weight decay is part of the gradient",
        _ADAM,
        state=("exp_avg", "exp_avg_sq"),
    ),
    "adamw": OptimizerEntry(
        "Adam with decoupled weight decay", _ADAM, state=("exp_avg", "exp_avg_sq")
    ),
    "adagrad": OptimizerEntry(
        "Adagrad: steps shrink with the sum of squared gradients",
        {
            "lr_decay": Option(
                "float", 0.0, "decay of the learning rate by step, 0 or more", low=0
            ),
            "initial_accumulator_value": Option(
                "float", 0.0, "first value of the sum of squares, 0 or more", low=0
            ),
            "eps": _eps(1e-10),
        },
        state=("sum",),
    ),
    "rmsprop": OptimizerEntry(
        "RMSprop, with train.momentum",
        {
            "alpha": Option(
                "float", 0.99, "decay of the mean of squares, 0 to 1", low=0.0, high=1.0
            ),
            "eps": _eps(1e-8),
            "centered": Option("bool", False, "divide by the variance in place of the mean square"),
        },
        takes_momentum=True,
        state=("square_avg",),
    ),
    "lion": OptimizerEntry(
        "Lion: the sign of a momentum, with decoupled weight decay",
        {"betas": _betas(0.9, 0.99)},
        state=("exp_avg",),
        counts=False,
    ),
}


def is_own(optimizer: str) -> bool:
    """Whether an optimizer is code of the user, ``module:name``."""
    return ":" in optimizer


def optimizer_problem(optimizer: str) -> str | None:
    """Why a text is no optimizer; None if it is one."""
    if optimizer in OPTIMIZERS or all(optimizer.partition(":")):
        return None
    return (
        f"{optimizer!r} is not module:name, nor one of {', '.join(OPTIMIZERS)}"
        f"{nearest(optimizer, OPTIMIZERS)}"
    )


def no_decay_problem(patterns: tuple[str, ...]) -> str | None:
    """Why ``train.no_decay`` cannot be used; None if it can."""
    for pattern in patterns:
        if not pattern or (pattern.startswith("@") and pattern not in (NORM, BIAS)):
            near = nearest(pattern, [NORM, BIAS])
            return f"{pattern!r} is not a pattern such as head.*, nor {NORM} or {BIAS}{near}"
    return None


def options_of(optimizer: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """
    The options of an optimizer, complete and checked; as they are for an own one.

    Args:
        optimizer: A name that ``optimizer_problem`` accepts.
        given: The config's ``train.optimizer_options``.

    Raises:
        ConfigError: An option is unknown or cannot be used.
    """
    field_name = "train.optimizer_options"
    if is_own(optimizer):
        for key, value in given.items():
            check_travels(f"{field_name}.{key}", value)
        return dict(given)
    known = OPTIMIZERS[optimizer].options
    for key in given:
        if key not in known:
            raise ConfigError(f"{field_name}.{key}", f"{optimizer} has {', '.join(known)}")
    return {
        key: option.parse(f"{field_name}.{key}", given[key]) if key in given else option.default
        for key, option in known.items()
    }


def state_of(optimizer: str, momentum: float, options: Mapping[str, Any]) -> tuple[str, ...]:
    """
    Tensors that an optimizer keeps of each parameter, as torch names them.

    Args:
        optimizer: A built-in one.
        momentum: The config's ``train.momentum``.
        options: As ``options_of`` returns them.
    """
    entry = OPTIMIZERS[optimizer]
    found = list(entry.state)
    if entry.takes_momentum and momentum:
        found.append("momentum_buffer")
    if options.get("amsgrad"):
        found.append("max_exp_avg_sq")
    if options.get("centered"):
        found.append("grad_avg")
    return tuple(found)


def kept_state(
    optimizer: str, momentum: float, given: Mapping[str, Any], precision: str
) -> tuple[str, ...]:
    """
    State of an optimizer that a client keeps with ``optimizer_state = "keep"``: of each parameter, but for ``SCALE``.

    Args:
        optimizer, momentum, given, precision: The config's ``train.optimizer``, ``momentum``,
            ``optimizer_options`` and ``precision``.

    Returns:
        Names; none of an own optimizer, which has no list of them, nor of sgd without momentum.
    """
    if is_own(optimizer):
        return ()
    names = state_of(optimizer, momentum, options_of(optimizer, given))
    counted = (STEP,) if OPTIMIZERS[optimizer].counts else ()
    scaled = (SCALE,) if precision == "float16" else ()
    return (*names, *counted, *scaled) if names else ()
