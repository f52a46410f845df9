"""
Tasks: the ``Task`` class, the built-in tasks, and how a task is found by its name.

Tasks import torch, so the names below are imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fl_queue.common.lazy import lazy

if TYPE_CHECKING:
    from fl_queue.common.data_folder import inside
    from fl_queue.protocol.model_usage import ModelUsage
    from fl_queue.tasks.arrays import ArrayTask, Rows
    from fl_queue.tasks.base import ClientData, OnEpoch, Task, with_context
    from fl_queue.tasks.context import ClientContext
    from fl_queue.tasks.hf.trainer_task import HFTask
    from fl_queue.tasks.loading import load_task
    from fl_queue.training.collation import pad
    from fl_queue.training.sgd import SgdOptions, evaluate, local_sgd

__all__ = [
    "ArrayTask",
    "ClientContext",
    "ClientData",
    "HFTask",
    "ModelUsage",
    "OnEpoch",
    "Rows",
    "SgdOptions",
    "Task",
    "evaluate",
    "inside",
    "load_task",
    "local_sgd",
    "pad",
    "with_context",
]

__getattr__ = lazy(
    __name__,
    {
        "ArrayTask": "fl_queue.tasks.arrays:ArrayTask",
        "ClientContext": "fl_queue.tasks.context:ClientContext",
        "ClientData": "fl_queue.tasks.base:ClientData",
        "HFTask": "fl_queue.tasks.hf.trainer_task:HFTask",
        "ModelUsage": "fl_queue.protocol.model_usage:ModelUsage",
        "OnEpoch": "fl_queue.tasks.base:OnEpoch",
        "Rows": "fl_queue.tasks.arrays:Rows",
        "SgdOptions": "fl_queue.training.sgd:SgdOptions",
        "Task": "fl_queue.tasks.base:Task",
        "evaluate": "fl_queue.training.sgd:evaluate",
        "inside": "fl_queue.common.data_folder:inside",
        "load_task": "fl_queue.tasks.loading:load_task",
        "local_sgd": "fl_queue.training.sgd:local_sgd",
        "pad": "fl_queue.training.collation:pad",
        "with_context": "fl_queue.tasks.base:with_context",
    },
    renamed={"Usage": "ModelUsage"},
)
