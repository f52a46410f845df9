"""Moved to ``fl_queue.strategies``; this path goes with the next release."""

from __future__ import annotations

from fl_queue.common.moved import moved

__getattr__ = moved("fl_queue.fields", "fl_queue.strategies", renamed={"Field": "Option"})
