"""
Federated learning over Redis: data owners train one model together, and their data stay with them.

Public: the names below, and the modules ``tasks``, ``strategies``, ``errors`` and ``metrics``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fl_queue._version import __version__
from fl_queue.common.lazy import lazy

if TYPE_CHECKING:
    from fl_queue.config.loading import load as load_config
    from fl_queue.experiments.baseline_training import train as train_baseline
    from fl_queue.experiments.trial import run_trial as try_task
    from fl_queue.run import Run

__all__ = ["Run", "__version__", "load_config", "train_baseline", "try_task"]

# Lazy: every process imports this package, and importing Run would slow down worker restarts.
__getattr__ = lazy(
    __name__,
    {
        "Run": "fl_queue.run:Run",
        "load_config": "fl_queue.config.loading:load",
        "train_baseline": "fl_queue.experiments.baseline_training:train",
        "try_task": "fl_queue.experiments.trial:run_trial",
    },
)
