"""
What is trained: the ``Task`` class, the built-in tasks, and how a task is found by its name.

Tasks import torch, so the names below are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fl_queue.common.data_folder import inside
    from fl_queue.protocol.model_usage import Usage
    from fl_queue.tasks.base import ClientContext, ClientData, OnEpoch, Task, with_context
    from fl_queue.tasks.loading import load_task
    from fl_queue.training.sgd import evaluate, local_sgd

__all__ = [
    "ClientContext",
    "ClientData",
    "OnEpoch",
    "Task",
    "Usage",
    "evaluate",
    "inside",
    "load_task",
    "local_sgd",
    "with_context",
]

_MODULES = {
    "ClientContext": "fl_queue.tasks.base",
    "ClientData": "fl_queue.tasks.base",
    "OnEpoch": "fl_queue.tasks.base",
    "Task": "fl_queue.tasks.base",
    "Usage": "fl_queue.protocol.model_usage",
    "evaluate": "fl_queue.training.sgd",
    "inside": "fl_queue.common.data_folder",
    "load_task": "fl_queue.tasks.loading",
    "local_sgd": "fl_queue.training.sgd",
    "with_context": "fl_queue.tasks.base",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
