"""
Beginning a run from a config, for whoever asks: ``start-round`` and the web page.
"""

from __future__ import annotations

import re
from pathlib import Path

from fl_queue import models, runs
from fl_queue.config import RunConfig
from fl_queue.store import Store


def name_of(config: str) -> str:
    """The name of a run that was given none: that of its config, as a run may be called."""
    return re.sub(r"[^A-Za-z0-9-]+", "-", Path(config).stem)


def begin(store: Store, name: str, config: RunConfig, count: int | None = None) -> str:
    """
    Create the run, or continue it from its newest version; ``rounds.advance`` opens its round.

    Args:
        count: Rounds to commit from here on; None: ``run.rounds``.

    Returns:
        Its run id.

    Raises:
        ConfigError: The name is not allowed, or the config changes a field that a run keeps.
        RunStateError: The run is training already.
        DataError: ``model.initial`` cannot be read.
    """
    initial = None
    if config.model["initial"]:
        initial = models.publish_initial(
            store, Path(config.model["initial"]), config.redis["chunk_bytes"]
        )
    return runs.start_run(store, name, config, count or config.run["rounds"], initial).run_id
