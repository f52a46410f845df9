"""
How a task is found by its name, and which names a worker lets in.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from dataclasses import replace
from types import ModuleType

from torch import nn

from fl_queue.catalog import TASKS
from fl_queue.config import RunConfig
from fl_queue.data_fields import SKEWS
from fl_queue.errors import ConfigError
from fl_queue.tasks import Task
from fl_queue.tasks.function import FunctionTask


def load_task(name: str, config: RunConfig, allow: Sequence[str] = (), data_dir: str = "") -> Task:
    """
    Make the task a run names.

    Args:
        name: A built-in task, or a class or function as ``module:name``.
        config: The run's config.
        allow: Own tasks this worker may load: ``module:name``, or ``module:*``. The name comes
            from Redis, and importing a module runs its code.
        data_dir: This machine's data folder; wins over ``data.dir``.

    Raises:
        ConfigError: ``run.task``, with the reason; or an option the task cannot use.
    """
    if data_dir:
        config = replace(config, data={**config.data, "dir": data_dir})
    made = _made(TASKS[name].target if name in TASKS else _allowed(name, allow), config)
    asked = [field for field in SKEWS if config.data[field]]
    if asked and not made.skews:
        raise ConfigError(
            f"data.{asked[0]}",
            f"{name} does not apply it; set it to 0, or have the task call self.skew and say "
            "skews = True",
        )
    return made


def _allowed(name: str, allow: Sequence[str]) -> str:
    """The name of an own task, when this worker may load it."""
    module, colon, _ = name.partition(":")
    if not colon:
        raise ConfigError(
            "run.task", f"{name!r} is neither built in ({', '.join(TASKS)}) nor module:name"
        )
    if name not in allow and f"{module}:*" not in allow:
        raise ConfigError(
            "run.task",
            f"this worker may not load {name}; if you trust it, start the worker with "
            f"--task-allow {name}",
        )
    return name


def _made(name: str, config: RunConfig) -> Task:
    module_name, _, attribute = name.partition(":")
    found = getattr(_imported(module_name), attribute, None)
    if isinstance(found, type) and issubclass(found, Task):
        if inspect.isabstract(found):
            missing = ", ".join(sorted(found.__abstractmethods__))
            raise ConfigError("run.task", f"{name} does not define {missing}")
        return found(config)
    if isinstance(found, nn.Module) or (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ConfigError(
            "run.task", f"{name} is a model; name a function that returns it and its training data"
        )
    if callable(found) and not isinstance(found, type):
        return FunctionTask(config, name, found)
    raise ConfigError(
        "run.task",
        f"{module_name} has no class {attribute} derived from fl_queue.tasks.Task, and no function "
        "of that name",
    )


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (ImportError, SyntaxError, ValueError) as exc:
        raise ConfigError("run.task", f"{name} cannot be imported: {exc}") from exc
