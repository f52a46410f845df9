"""Moved to ``fl_queue.training.sgd``; this path goes with the next release."""

from __future__ import annotations

from fl_queue.common.moved import moved

__getattr__ = moved("fl_queue.sgd", "fl_queue.training.sgd")
