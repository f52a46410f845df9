"""
Errors of a model that does not take a batch: they name the shapes of both. Imports torch.

torch's own text ("mat1 and mat2 shapes cannot be multiplied") names neither the data nor the layer.
"""

from __future__ import annotations

import inspect
import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from fl_queue.errors import ConfigError

#: Words of torch's and Python's texts about an argument's form.
_ABOUT_FORM = re.compile(
    r"\b(shapes?|sizes?|dim(ension)?s?|channels?|[123]D|mat[12]|dtype|scalar type|same type|"
    r"arguments?|index out of range|elements|normalized_shape|tensors? for argument)\b",
    re.I,
)
#: Attributes of torch's layers that hold the size of an input, and the words for it.
_SIZES = {
    "in_features": "{}",
    "in_channels": "{} channels",
    "num_embeddings": "whole numbers below {}",
    "normalized_shape": "{} at the end",
    "num_features": "{} channels",
    "input_size": "{}",
    "embed_dim": "{}",
}
#: Tensors of an input that a text names.
_NAMED = 4


@contextmanager
def naming_shapes(model: nn.Module, batch: Any) -> Iterator[None]:
    """
    Raise errors of a forward pass that concern the form of its input with the shapes of both.

    Raises:
        ConfigError: In place of such an error; every other is raised as it is.
    """
    try:
        yield
    except (RuntimeError, TypeError, ValueError, IndexError) as exc:
        if not _is_about_form(exc):
            raise
        what = (
            f"the model does not take a batch of the data: input {shapes_of(_inputs(batch))}, "
            f"{_wanted(model, exc)} ({type(exc).__name__} in forward)"
        )
        first = next(iter(str(exc).splitlines()), "")
        raise ConfigError("run.task", f"{what}: {first}", public=what) from exc


def shapes_of(value: Any) -> str:
    """Shapes of the tensors in a nested value, with each dtype that is not float32; no value of them."""
    found = [_shape(one) for one in _leaves(value) if isinstance(one, Tensor)]
    if not found:
        return type(value).__name__
    more = [f"and {len(found) - _NAMED} more"] if len(found) > _NAMED else []
    return ", ".join(found[:_NAMED] + more)


def _shape(value: Tensor) -> str:
    dtype = "" if value.dtype == torch.float32 else f"{value.dtype} ".removeprefix("torch.")
    return f"{dtype}{tuple(value.shape)}"


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        value = [*value.values()]
    if isinstance(value, (list, tuple)):
        for one in value:
            yield from _leaves(one)
    else:
        yield value


def _inputs(batch: Any) -> Any:
    """A batch without its target."""
    is_several = isinstance(batch, (list, tuple)) and len(batch) > 1
    return batch[:-1] if is_several else batch


def _is_about_form(error: Exception) -> bool:
    accelerator = getattr(torch, "AcceleratorError", torch.OutOfMemoryError)
    if isinstance(error, (torch.OutOfMemoryError, accelerator)):
        return False
    text = str(error)
    # A process that reads samples has died: torch raises that anywhere.
    return not text.startswith("DataLoader worker (pid") and bool(_ABOUT_FORM.search(text))


def _wanted(model: nn.Module, error: Exception) -> str:
    """Input of the layer that raised an error, else of the first layer that names one."""
    inner = _innermost(error.__traceback__)
    if inner is None:  # Python could not bind the arguments of ``forward``.
        return f"forward takes {_arguments(model)}"
    if re.search(r"dtype|scalar type|same type", str(error)):
        dtypes = {one.dtype for one in model.parameters() if one.is_floating_point()}
        return f"the model's weights are {', '.join(sorted(str(d).removeprefix('torch.') for d in dtypes))}"
    layers = [(name, one) for name, one in model.named_modules() if _size(one)]
    for position, (name, one) in enumerate(layers):
        if one is inner and position:
            return f"layer {name} wants {_size(one)}"
    return f"first layer wants {_size(layers[0][1])}" if layers else "whose forward wants another"


def _size(layer: nn.Module) -> str:
    for name, words in _SIZES.items():
        found = getattr(layer, name, None)
        if isinstance(found, int):
            return words.format(found)
        if isinstance(found, tuple):
            return words.format(tuple(found))
    return ""


def _arguments(model: nn.Module) -> str:
    try:
        names = [*inspect.signature(model.forward).parameters]
    except (TypeError, ValueError):
        return "other arguments"
    return ", ".join(names) or "no argument"


def _innermost(trace: TracebackType | None) -> nn.Module | None:
    """The module whose ``forward`` was entered last."""
    found = None
    for frame, _ in traceback.walk_tb(trace):
        owner = frame.f_locals.get("self")
        if frame.f_code.co_name == "forward" and isinstance(owner, nn.Module):
            found = owner
    return found
