"""Refusal of ``[train]`` fields that contradict each other, or the strategy. No Redis here."""

from __future__ import annotations

from fl_queue.config.optimizer_catalog import OPTIMIZERS, kept_state, options_of
from fl_queue.config.schema import TrainSection
from fl_queue.errors import ConfigError
from fl_queue.strategies.base import Strategy


def check_training(train: TrainSection, strategy: Strategy) -> None:
    """
    Refuse an optimizer whose options, or whose place in the strategy's equations, do not exist.

    Raises:
        ConfigError: Names the field of ``[train]`` to change, and the fix.
    """
    options = options_of(train.optimizer, train.optimizer_options)
    entry = OPTIMIZERS.get(train.optimizer)
    if entry is not None and train.momentum and not entry.takes_momentum:
        raise ConfigError(
            "train.momentum",
            f"{train.optimizer} takes none: it has {', '.join(options)} in "
            "train.optimizer_options; set it to 0",
        )
    if entry is not None and options.get("nesterov") and not train.momentum:
        raise ConfigError(
            "train.optimizer_options.nesterov",
            "has no effect without momentum; set train.momentum above 0, or this to false",
        )
    _check_strategy(train, strategy)
    if train.optimizer_state == "keep":
        _check_kept(train)


def _check_kept(train: TrainSection) -> None:
    """Refuse to keep what is not there, or not listed."""
    if train.optimizer not in OPTIMIZERS:
        raise ConfigError(
            "train.optimizer_state",
            f"keep needs an optimizer whose state is known ({', '.join(OPTIMIZERS)}), which that of "
            f"{train.optimizer} is not; set it to reset",
        )
    if not kept_state(train.optimizer, train.momentum, train.optimizer_options, train.precision):
        raise ConfigError(
            "train.optimizer_state",
            "keep has no effect: sgd keeps nothing without momentum; set train.momentum above 0, or this to reset",
        )


def _check_strategy(train: TrainSection, strategy: Strategy) -> None:
    """Refuse what the strategy's equations do not know."""
    differs = {
        "optimizer": train.optimizer != "sgd",
        "schedule": train.schedule != "constant",
        "warmup": train.warmup != 0.0,
        "optimizer_state": train.optimizer_state != "reset",
        "ema": train.ema != 0.0,
    }
    refusals = strategy.training_refusals(train.optimizer if differs["optimizer"] else "adamw")
    for field, is_other in differs.items():
        if is_other and field in refusals:
            raise ConfigError(f"train.{field}", refusals[field])
