"""Tasks found by their names, and the names that a worker allows."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any, cast

from torch import nn

from fl_queue.common.extras import how_to_install
from fl_queue.common.own_modules import defines, import_own
from fl_queue.common.seeding import seed_for
from fl_queue.common.spelling import nearest
from fl_queue.config.data_section import SKEWS
from fl_queue.config.optimizer_catalog import is_own
from fl_queue.config.run_config import RunConfig
from fl_queue.config.task_catalog import (
    FLOWER_MODEL,
    TASKS,
    built_in_family,
    flower_client,
    own_code,
)
from fl_queue.errors import ConfigError
from fl_queue.tasks import task_code
from fl_queue.tasks.base import Task
from fl_queue.tasks.error_disclosure import class_name
from fl_queue.tasks.function import FunctionTask
from fl_queue.training.data_loading import seed_everything
from fl_queue.training.optimizers import Maker


def load_task(name: str, config: RunConfig, allow: Sequence[str] = (), data_dir: str = "") -> Task:
    """
    Make the task a run names.

    Args:
        name: A built-in task, a class or function as ``module:name``, or a Flower client as
            ``flower:module:name``.
        config: The run's config.
        allow: What this worker may load: own code as ``module:name``, or ``module:*`` for what a module
            defines; built-in tasks by their names, or ``mnist``. Empty: all built-in ones. The name
            comes from Redis, and importing a module runs its code.
        data_dir: This machine's data folder. The config's ``data.dir`` is not used
            here: ``WorkerSettings.data_folder`` decides whether a machine follows it.

    Raises:
        ConfigError: ``run.task``, with the reason; or an option the task cannot use.
    """
    if config.analysis is not None:
        raise ConfigError(
            "run.task", f"{name} trains no model; see `fl-queue {name} --help`", public=True
        )
    config = replace(config, data=replace(config.data, dir=data_dir))
    made = _built_in(name, config, allow) if name in TASKS else _own(name, config, allow)
    if is_own(config.train.optimizer):
        # Looked for where it is used: an evaluator needs none.
        made.own_optimizer = partial(_own_optimizer, config.train.optimizer, allow)
    # Right after the import: what runs is what the file held then.
    task_code.imported_digest(made.code)
    asked = [field for field in SKEWS if getattr(config.data, field)]
    if asked and not made.skews:
        raise ConfigError(
            f"data.{asked[0]}",
            f"{name} does not apply it; set it to 0, or have the task call self.skew and set "
            "skews = True",
            public=True,
        )
    if not made.takes_corrections and config.plain_strategy().needs_local_sgd:
        raise ConfigError(
            "aggregation.strategy",
            f"{config.aggregation.strategy} corrects the gradient of each step, and {name} trains without "
            "such steps; use another one, such as fedavg",
            public=True,
        )
    return made


def _built_in(name: str, config: RunConfig, allow: Sequence[str]) -> Task:
    """A built-in task, when this worker trains it."""
    if allow and not {name, built_in_family(name)} & set(allow):
        raise ConfigError(
            "run.task",
            f"this worker trains what it allows, and {name} is not among that; to allow it, start the "
            f"worker with --task-allow {name}",
            public=True,
        )
    return _made(TASKS[name].target, config, TASKS[name].target)


def _own(name: str, config: RunConfig, allow: Sequence[str]) -> Task:
    """An own task, when this worker may load all of its code."""
    codes = own_code(name, config.task)
    if not codes:
        raise ConfigError(
            "run.task",
            f"{name!r} is neither built in ({', '.join(TASKS)}) nor module:name",
            public=True,
        )
    for code in codes:
        if ":" not in code:
            raise ConfigError(f"task.{FLOWER_MODEL}", f"{code!r} is not module:name", public=True)
    if code := barred(codes, allow):
        raise ConfigError(
            "run.task",
            f"this worker may not load {code}; if you trust it, start the worker with "
            f"--task-allow {code}",
            public=True,
        )
    return _flower(config, allow, *codes) if flower_client(name) else _made(name, config, *allow)


def _own_optimizer(code: str, allow: Sequence[str]) -> Maker:
    """The own optimizer of a run, when this worker may load it."""
    if barred([code], allow):
        raise ConfigError(
            "train.optimizer",
            f"this worker may not load {code}; if you trust it, start the worker with "
            f"--task-allow {code}",
            public=True,
        )
    found = _attribute("train.optimizer", code, allow)[1]
    if not callable(found):
        raise ConfigError("train.optimizer", f"{code} is no class or function", public=True)
    return cast(Maker, found)


def barred(codes: Sequence[str], allow: Sequence[str]) -> str:
    """The first of the codes (``task_catalog.own_code``) that may not be loaded; empty: all may."""
    allowed = _codes(allow)
    return next(
        (code for code in codes if allowed.isdisjoint((code, f"{code.partition(':')[0]}:*"))), ""
    )


def _codes(allow: Sequence[str]) -> set[str]:
    # As in the config or without the prefix: it is the code that is allowed.
    return {flower_client(entry) or entry for entry in allow}


def _check_defined(code: str, module: ModuleType, found: Any, allow: Sequence[str]) -> None:
    """Raises ConfigError if a module only imported what it has of a name: ``module:*`` means what it defines."""
    if code not in _codes(allow) and not defines(module, found):
        raise ConfigError(
            "run.task",
            f"{code} is not defined in {module.__name__}, and {module.__name__}:* allows the classes and "
            f"functions that are; if you trust it, start the worker with --task-allow {code}",
            public=True,
        )


def _flower(config: RunConfig, allow: Sequence[str], code: str, model: str = "") -> Task:
    """The task of a Flower client. Args: ``model``: what makes its model; empty: itself."""
    try:
        from fl_queue.tasks.flower import FlowerTask
        from fl_queue.tasks.flower_adapter import FlowerApp
    except ModuleNotFoundError as exc:
        raise ConfigError(
            "run.task",
            f"{code} needs Flower ({exc}); {how_to_install('flower')}",
            public=f"{code} needs Flower; {how_to_install('flower')}",
        ) from exc
    # Flower clients often make their model when they are imported.
    seed_everything(seed_for(config.run.seed, "import"))
    module, found = _attribute("run.task", code, allow)
    maker = _attribute(f"task.{FLOWER_MODEL}", model, allow)[1] if model else None
    return FlowerTask(config, module, FlowerApp(code, found), maker)


def _made(name: str, config: RunConfig, *allow: str) -> Task:
    module_name, _, attribute = name.partition(":")
    module = _imported(module_name)
    found = getattr(module, attribute, None)
    if isinstance(found, type) and issubclass(found, Task):
        if inspect.isabstract(found):
            missing = ", ".join(sorted(found.__abstractmethods__))
            raise ConfigError("run.task", f"{name} does not define {missing}", public=True)
        _check_defined(name, module, found, allow)
        return found(config)
    if isinstance(found, nn.Module) or (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ConfigError(
            "run.task",
            f"{name} is a model; name a function that returns it and its training data",
            public=True,
        )
    if callable(found) and not isinstance(found, type):
        _check_defined(name, module, found, allow)
        return FunctionTask(config, name, found)
    raise ConfigError(
        "run.task",
        f"{module_name} has no class {attribute} derived from fl_queue.tasks.base.Task, and no function "
        "of that name",
        public=True,
    )


def _attribute(field: str, code: str, allow: Sequence[str]) -> tuple[ModuleType, Any]:
    """A module and what it has of that name."""
    name, _, attribute = code.partition(":")
    module = _imported(name)
    if not hasattr(module, attribute):
        raise ConfigError(
            field,
            f"{name} has no {attribute!r}{nearest(attribute, dir(module))}",
            public=f"{name} has no {attribute!r}",
        )
    found = getattr(module, attribute)
    _check_defined(code, module, found, allow)
    return module, found


def _import_error(name: str, error: Exception) -> str:
    """The reason why a module cannot be imported, without the text of foreign errors."""
    if isinstance(error, ModuleNotFoundError) and error.name == name:
        return "there is no such module"
    line = f" (line {error.lineno})" if isinstance(error, SyntaxError) and error.lineno else ""
    return class_name(type(error)) + line


def _imported(name: str) -> ModuleType:
    try:
        return import_own(name)
    except (ImportError, SyntaxError, ValueError) as exc:
        raise ConfigError(
            "run.task",
            f"{name} cannot be imported: {exc}",
            public=f"{name} cannot be imported: {_import_error(name, exc)}",
        ) from exc
