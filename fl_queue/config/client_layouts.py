"""The tensors that a run's clients keep from round to round, by its config. No Redis here."""

from __future__ import annotations

from fl_queue.config.optimizer_catalog import kept_state
from fl_queue.config.run_config import RunConfig
from fl_queue.protocol.manifest import Manifest
from fl_queue.strategies.base import Strategy
from fl_queue.strategies.layouts import client_layouts


def layouts_of(config: RunConfig, strategy: Strategy, manifest: Manifest) -> dict[str, Manifest]:
    """Tensors that a run's clients keep: name -> its tensors; none where they keep nothing."""
    train = config.train
    kept: tuple[str, ...] = ()
    if train.optimizer_state == "keep":
        kept = kept_state(train.optimizer, train.momentum, train.optimizer_options, train.precision)
    return client_layouts(strategy, manifest, config.update.error_feedback, kept)
