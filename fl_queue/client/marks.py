"""
Marks: state of this process that a later job could see, compared before and after a job.

A task that keeps something on itself or in its module, or writes into its data, would make the next round
depend on this one; then nothing is kept. Imports torch; no Redis here.
"""

from __future__ import annotations

import hashlib
import os
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset, TensorDataset

from fl_queue.tasks.base import ClientData, Task

#: Blocks of a tensor that are looked at, and elements of each.
_BLOCKS, _ELEMENTS = 64, 16
#: Set by the first job on a CUDA device.
_OURS = ("CUBLAS_WORKSPACE_CONFIG",)
_PLAIN = (type(None), bool, int, float, complex, str, bytes)


class Marks:
    """The marks of one job: taken when it begins, and compared when it has ended."""

    def __init__(self) -> None:
        self._task: Task | None = None
        self._before: dict[str, Any] = {}
        self._data: list[tuple[Any, Any]] = []

    def take(self, task: Task, data: Iterable[Any]) -> None:
        """Take them, of a task and of the data that are kept."""
        self._task = task
        self._before = {**_of_process(), **_of_task(task)}
        self._data = [(found, _of_data(found)) for found in data]

    def add_data(self, found: Any) -> None:
        """Take them of data that have been read meanwhile; what reading left at the task is theirs."""
        self._data.append((found, _of_data(found)))
        if self._task is not None:
            self._before = {**_of_process(), **_of_task(self._task)}

    def changed(self) -> list[str]:
        """What has changed since, in words; a process's settings are set back."""
        if self._task is None:
            return []
        now = {**_of_process(), **_of_task(self._task)}
        names = sorted(self._before.keys() | now.keys())
        found = [name for name in names if self._before.get(name) != now.get(name)]
        if any(_of_data(data) != before for data, before in self._data):
            found.append("the samples")
        _set_back(self._before)
        return found


def _of_process() -> dict[str, Any]:
    return {
        "the working folder": str(Path.cwd()),
        "the environment": {name: os.environ[name] for name in os.environ if name not in _OURS},
        "sys.path": tuple(sys.path),
        "torch's default dtype": torch.get_default_dtype(),
        "torch's gradient mode": torch.is_grad_enabled(),
        "numpy's error state": tuple(sorted(np.geterr().items())),
        "the threads": tuple(sorted(thread.name for thread in threading.enumerate())),
    }


def _set_back(before: Mapping[str, Any]) -> None:
    for name in [name for name in os.environ if name not in (*before["the environment"], *_OURS)]:
        del os.environ[name]
    os.environ.update(before["the environment"])
    os.chdir(before["the working folder"])
    sys.path[:] = before["sys.path"]
    torch.set_default_dtype(before["torch's default dtype"])
    torch.set_grad_enabled(before["torch's gradient mode"])
    np.seterr(**dict(before["numpy's error state"]))


def _of_task(task: Task) -> dict[str, Any]:
    found = {
        f"task attribute {name!r}": _of_value(value)
        for name, value in vars(task).items()
        if name not in task.unmarked
    }
    for module in _own_modules(task):
        found |= {
            f"global {name!r} of {module.__name__}": _of_value(value)
            for name, value in vars(module).items()
            if not name.startswith("__")
        }
    return found


def _own_modules(task: Task) -> Iterator[ModuleType]:
    """The modules of a task's own code; fl-queue's own have no state of a job."""
    code = task.code
    names = {code.__name__ if isinstance(code, ModuleType) else getattr(code, "__module__", "")}
    names |= {kind.__module__ for kind in type(task).__mro__}
    for name in sorted(names):
        module = sys.modules.get(name)
        if module is not None and name.partition(".")[0] not in ("fl_queue", "abc", "builtins"):
            yield module


def _of_value(value: Any) -> Any:
    """Plain values by value, containers by identity and length, tensors by their version."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Tensor):
        return id(value), value._version
    if isinstance(value, np.ndarray):
        return id(value), _sampled(value)
    if isinstance(value, tuple):
        return tuple(map(_of_value, value))
    if isinstance(value, (list, dict, set, frozenset)):
        return id(value), len(value)
    return id(value)


def _of_data(found: Any) -> Any:
    """Versions and sampled elements of the tensors of data sets."""
    if isinstance(found, ClientData):
        return _of_data(found.train), _of_data(found.validation)
    if isinstance(found, Subset):
        return _of_data(found.dataset)
    if isinstance(found, TensorDataset):
        return tuple((tensor._version, _sampled_tensor(tensor)) for tensor in found.tensors)
    return None


def _sampled_tensor(tensor: Tensor) -> str:
    return (
        _sampled(tensor.detach().reshape(-1).cpu().numpy()) if tensor.device.type == "cpu" else ""
    )


def _sampled(values: Any) -> str:
    """Digest of some blocks: a write through numpy changes no version of a tensor."""
    flat = values.reshape(-1)
    if flat.dtype.hasobject:
        return ""
    starts = np.linspace(0, max(len(flat) - _ELEMENTS, 0), _BLOCKS).astype(np.int64)
    digest = hashlib.blake2b(digest_size=16)
    for start in np.unique(starts):
        digest.update(np.ascontiguousarray(flat[start : start + _ELEMENTS]).tobytes())
    return digest.hexdigest()
