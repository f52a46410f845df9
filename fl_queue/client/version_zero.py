"""
Version 0: a freshly built model, or the run's initial one, split into what is trained and the base part.

Imports torch. No Redis here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from fl_queue.client.personalization import private_names
from fl_queue.errors import ConfigError
from fl_queue.protocol.manifest import Manifest
from fl_queue.protocol.tensor_layout import little_endian
from fl_queue.tasks import calls
from fl_queue.tasks.adapters import adapters_of
from fl_queue.tasks.base import Task
from fl_queue.training import base_part
from fl_queue.training.model_tensors import Arrays, load_arrays, manifest_of, state_of, views_of

#: The arrays of an initial model, for the manifest of all of a model's tensors and the arrays of its build.
Fill = Callable[[Manifest, Arrays], Arrays]


@dataclass(frozen=True)
class VersionZero:
    """
    What the maker of version 0 sends.

    Args:
        manifest: The run's.
        arrays: The version's tensors: those that are trained.
        model: It has the base part, if there is one.
    """

    manifest: Manifest
    arrays: Arrays
    model: nn.Module

    def pieces(self) -> Iterator[Any]:
        """The body as it is sent: the version, then the base part where it is published."""
        for spec in self.manifest.tensors:
            yield little_endian(self.arrays[spec.name])
        if self.manifest.published is not None:
            yield from self.base_pieces()

    def base_pieces(self) -> Iterator[memoryview]:
        """The body of the base part, tensor by tensor."""
        if self.manifest.base is not None:
            yield from base_part.pieces(state_of(self.model), self.manifest.base.tensors)

    def base_body(self) -> bytes:
        """The body of the base part, in memory."""
        return b"".join(self.base_pieces())


def version_zero(task: Task, seed: int, fill: Fill | None = None) -> VersionZero:
    """
    Version 0 of a task's model.

    Args:
        task: Builds the model.
        seed: The run's; decides the weights.
        fill: Gives the arrays to start from in place of those of the build; None: the build's.

    Raises:
        ModelMismatch: A tensor's dtype cannot travel, or the arrays do not fit.
        ConfigError: ``model.private`` or ``model.constant`` matches nothing, or all that is trained;
            or all parameters are frozen.
    """
    with base_part.initialising(seed):
        model = calls.model(task)
    whole = manifest_of(model)
    _refuse_all_frozen(whole)
    filled = fill(whole, views_of(model, whole)) if fill is not None else None
    settings = task.config.model
    if filled is not None:
        load_arrays(model, whole, filled)
    manifest = base_part.split(
        state_of(model), whole, settings.constant, settings.base == "publish"
    )
    private = private_names(model, manifest, settings.private)
    adapters = adapters_of(model) if manifest.base is not None else None
    manifest = replace(manifest, private=private, adapters=adapters)
    arrays = views_of(model, manifest) if filled is None else filled
    return VersionZero(manifest, {spec.name: arrays[spec.name] for spec in manifest.tensors}, model)


def _refuse_all_frozen(whole: Manifest) -> None:
    parameters = sum(spec.kind == "parameter" for spec in whole.tensors)
    if whole.frozen and len(whole.frozen) == parameters:
        raise ConfigError(
            "run.task",
            "every parameter of its model is frozen (requires_grad = False), so there is nothing to "
            "train; leave one out",
            public=True,
        )


def initial_model(task: Task, seed: int) -> tuple[Manifest, Arrays]:
    """Manifest and arrays of a freshly built version 0; arguments and errors as of ``version_zero``."""
    made = version_zero(task, seed)
    return made.manifest, made.arrays
