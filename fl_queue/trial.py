"""Moved to ``fl_queue.try_task``; this path goes with the next release."""

from __future__ import annotations

from fl_queue.common.moved import moved

__getattr__ = moved(
    "fl_queue.trial", "fl_queue.experiments.trial", renamed={"try_task": "run_trial"}
)
