"""A torch model with the tensors of a version, and the run's base part under them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray
from torch import nn

from fl_queue.protocol.manifest import Manifest
from fl_queue.tasks import calls
from fl_queue.tasks.base import Task
from fl_queue.training import base_part, memory
from fl_queue.training.base_part import Fetch
from fl_queue.training.model_tensors import load_arrays, state_of


def built(
    task: Task,
    manifest: Manifest,
    arrays: Mapping[str, NDArray[Any]],
    device: str = "cpu",
    fetch: Fetch | None = None,
) -> nn.Module:
    """
    Build the task's model, and load a version into it.

    Args:
        task: Its seed decides a random base part.
        manifest: The run's.
        arrays: The version's tensors; not modified.
        device: Where the model is to be.
        fetch: Brings the body of the base part; None: the task's build has to have it.

    Raises:
        ModelMismatch: The task builds another model than the run's; names a tensor.
        DataError: The base part is not at this site, and cannot be fetched.
    """
    if manifest.base is None:
        model = calls.model(task)
    else:
        with base_part.initialising(task.config.run.seed):
            model = calls.model(task)
        base_part.ensure(state_of(model), manifest.base, fetch)
    load_arrays(model, manifest, arrays)
    with memory.naming("the model"):
        return model.to(device)
