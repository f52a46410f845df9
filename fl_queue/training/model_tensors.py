"""
A torch model as the arrays that travel, and back.

Imports torch, so only clients and the evaluator import this. No Redis here.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fl_queue.errors import ModelMismatch
from fl_queue.protocol.manifest import Kind, Manifest, TensorSpec
from fl_queue.training import base_part

Arrays = dict[str, NDArray[Any]]

#: torch's layers that normalise by the statistics of a batch; their common base class is private.
BATCH_NORM_LAYERS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.LazyBatchNorm1d,
    nn.LazyBatchNorm2d,
    nn.LazyBatchNorm3d,
)


def manifest_of(model: nn.Module) -> Manifest:
    """
    The tensors of a model, by kind; ``base_part.split`` takes those out that are not trained.

    Everything in its ``state_dict``: buffers that are not persistent stay on the client. Of tensors
    that share storage only the alphabetically first travels; the others are its aliases. Parameters
    that do not require a gradient are frozen.

    Raises:
        ModelMismatch: A tensor's dtype cannot travel.
    """
    specs: list[TensorSpec] = []
    aliases: dict[str, str] = {}
    owners: dict[tuple[Any, ...], str] = {}
    trained: set[str] = set()
    for name, tensor in sorted(state_of(model).items()):
        owner = owners.setdefault(place_of(name, tensor), name)
        if owner == name:
            specs.append(TensorSpec(name, tuple(tensor.shape), _kind(name, tensor)))
        else:
            aliases[name] = owner
        if tensor.requires_grad:
            trained.add(owner)
    parameters = (spec.name for spec in specs if spec.kind == "parameter")
    frozen = tuple(name for name in parameters if name not in trained)
    return Manifest(tuple(specs), aliases, frozen=frozen)


def place_of(name: str, tensor: Tensor) -> tuple[Any, ...]:
    """Place of a tensor in memory, equal for all its names; an empty tensor has no storage to share."""
    return (tensor.data_ptr(), tensor.shape, tensor.stride()) if tensor.numel() else (name,)


def check_frozen(model: nn.Module, manifest: Manifest) -> None:
    """
    Refuse a freshly built model that trains other parameters than the run's.

    Raises:
        ModelMismatch: It does not; names a parameter.
    """
    run = set(manifest.frozen)
    if manifest.base is not None:
        run = {name for name, one in state_of(model).items() if _is_trainable(one)}
        run &= manifest.base.names
    differing = set(manifest_of(model).frozen) ^ run
    if differing:
        raise ModelMismatch(
            f"parameter {min(differing)} is frozen (requires_grad = False) in this machine's model "
            "or in the run's, and not in both; use the same task code and options",
            public=True,
        )


def _is_trainable(tensor: Tensor) -> bool:
    return isinstance(tensor, nn.Parameter) and tensor.is_floating_point()


def check_unchanged(model: nn.Module, manifest: Manifest, base: Mapping[str, NDArray[Any]]) -> None:
    """
    Refuse a training that changed what is frozen: that would be lost, as nothing of it is sent.

    Args:
        base: Arrays the model was loaded with.

    Raises:
        ModelMismatch: It has not; names the parameter.
    """
    state = state_of(model)
    for name in manifest.frozen:
        found = state[name].detach().cpu()
        loaded = torch.empty_like(found)  # Of the model's dtype, which may round.
        _copy_into(loaded, base[name])
        if not torch.allclose(found, loaded, rtol=0.0, atol=0.0, equal_nan=True):
            raise ModelMismatch(
                f"parameter {name} is frozen (requires_grad = False) in the model that the task "
                "builds, and its training changed it; build the model with it unfrozen",
                public=True,
            )


def load_arrays(model: nn.Module, manifest: Manifest, arrays: Mapping[str, NDArray[Any]]) -> None:
    """
    Copy arrays into a model, in place; its base part stays as it is.

    Raises:
        ModelMismatch: The model or the arrays have other tensors than the manifest; names one.
    """
    state = _checked(model, manifest)
    with torch.no_grad():
        for spec in manifest.tensors:
            array = arrays.get(spec.name)
            if array is None or array.shape != spec.shape:
                found = "missing" if array is None else f"of shape {array.shape}"
                raise ModelMismatch(
                    f"tensor {spec.name}: its array is {found}, not of shape {spec.shape}",
                    public=True,
                )
            _copy_into(state[spec.name], array)


def load_some(model: nn.Module, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Copy some tensors into a model that has them, in place. Args: ``arrays``: name -> array."""
    state = state_of(model)
    with torch.no_grad():
        for name, array in arrays.items():
            _copy_into(state[name], array)


def _copy_into(tensor: Tensor, array: NDArray[Any]) -> None:
    values = np.asarray(array) if array.flags.aligned else np.array(array)
    with warnings.catch_warnings():
        # Views of received bytes are read-only, which torch warns of; nothing writes to them.
        warnings.simplefilter("ignore", UserWarning)
        tensor.copy_(torch.from_numpy(values))


def small_dtypes(model: nn.Module, manifest: Manifest) -> dict[str, torch.dtype]:
    """Tensor -> dtype, of the tensors that round what is loaded into them: smaller than float32."""
    state = state_of(model)
    kept = (spec.name for spec in manifest.tensors if spec.kind != "integer_buffer")
    return {name: state[name].dtype for name in kept if state[name].dtype.itemsize < 4}


def as_loaded(values: NDArray[Any], dtype: torch.dtype) -> NDArray[Any]:
    """Float32 values as a tensor of a smaller dtype has them, float32 again."""
    rounded = torch.from_numpy(np.array(values)).to(dtype)
    return np.asarray(rounded.to(torch.float32).numpy())


def views_of(model: nn.Module, manifest: Manifest) -> Arrays:
    """
    A model's tensors as they travel: float32 or int64, C order; copied where they are not so.

    Raises:
        ModelMismatch: The model has other tensors than the manifest; names one.
    """
    state = _checked(model, manifest)
    return {
        spec.name: np.ascontiguousarray(
            state[spec.name].detach().to("cpu", _torch_dtype(spec)).numpy()
        ).reshape(spec.shape)
        for spec in manifest.tensors
    }


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """A model's parameters and persistent buffers by name, themselves, not detached."""
    # keep_vars: a Parameter must differ from a buffer. Extra state may be of any type; it stays.
    return {
        name: value
        for name, value in model.state_dict(keep_vars=True).items()
        if isinstance(value, Tensor)
    }


def _kind(name: str, tensor: Tensor) -> Kind:
    if tensor.is_floating_point():
        return "parameter" if isinstance(tensor, nn.Parameter) else "float_buffer"
    if tensor.is_complex() or tensor.is_quantized:
        raise ModelMismatch(
            f"tensor {name}: {tensor.dtype} cannot travel; use float32 or integers",
            public=f"a tensor of {tensor.dtype} cannot travel; use float32 or integers",
        )
    return "integer_buffer"


def _torch_dtype(spec: TensorSpec) -> torch.dtype:
    return torch.int64 if spec.kind == "integer_buffer" else torch.float32


def _checked(model: nn.Module, wanted: Manifest) -> dict[str, Tensor]:
    """The tensors of a model that has those of the run's. Raises ModelMismatch: it has others."""
    state, found = state_of(model), manifest_of(model)
    if wanted.base is not None:
        base_part.check_same(state, wanted.base)
    _check_same(found, wanted, wanted.base.names if wanted.base is not None else frozenset())
    return state


def _check_same(found: Manifest, wanted: Manifest, base: frozenset[str]) -> None:
    ours = {spec.name: spec for spec in found.tensors if spec.name not in base}
    theirs = {spec.name: spec for spec in wanted.tensors}
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            # A name that the run does not know comes from this machine's code alone.
            raise ModelMismatch(
                f"tensor {name}: {_describe(ours.get(name))} in this machine's model, "
                f"{_describe(theirs.get(name))} in the run's; use the same task code and options",
                public=f"{_known(name, theirs)}: {_describe(ours.get(name))} in this machine's model, {_describe(theirs.get(name))} in the run's; use the same task code and options",
            )
    if dict(found.aliases) != dict(wanted.aliases):
        raise ModelMismatch(
            f"tied tensors differ: {dict(found.aliases)} here, {dict(wanted.aliases)} in the run",
            public="tied tensors differ here and in the run; use the same task code and options",
        )


def _known(name: str, theirs: Mapping[str, TensorSpec]) -> str:
    return f"tensor {name}" if name in theirs else "a tensor that the run does not have"


def _describe(spec: TensorSpec | None) -> str:
    return f"{spec.kind} {spec.shape}" if spec else "missing"
