"""Moved to ``workers.rq_worker``; this path goes with the next release."""

from __future__ import annotations

from fl_queue.common.moved import moved

__getattr__ = moved("workers.rqworker", "workers.rq_worker")
