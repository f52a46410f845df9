"""Moved to ``fl_queue.tasks``; this path goes with the next release."""

from __future__ import annotations

from fl_queue.common.moved import moved

__getattr__ = moved("fl_queue.usage", "fl_queue.tasks", renamed={"Usage": "ModelUsage"})
