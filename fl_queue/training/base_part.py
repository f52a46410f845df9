"""
Base part of a torch model: the tensors that are not trained, as bytes, and back.

A site whose own build has the run's digest fetches nothing. Imports torch; no Redis here.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fl_queue.common.seeding import seed_for
from fl_queue.common.spelling import nearest
from fl_queue.errors import ConfigError, ModelMismatch
from fl_queue.protocol.base_part import BasePart, BaseTensor, digest_of, missing
from fl_queue.protocol.manifest import Manifest
from fl_queue.protocol.tensor_layout import as_bytes
from fl_queue.training.data_loading import seed_everything

#: Name of a dtype in a base part -> torch's.
DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
#: Buffers of these dtypes are masks and codes, not counters.
_CODES = (torch.bool, torch.int8, torch.uint8)
#: Elements of a tensor that are compared after a training, besides its count of changes.
_LOOKED_AT = 16

State = Mapping[str, Tensor]
Array = npt.NDArray[np.uint8]
#: Brings the body of a base part that this machine has not built.
Fetch = Callable[[], bytes | bytearray | memoryview]


@contextmanager
def initialising(seed: int) -> Iterator[None]:
    """
    Draw what version 0 draws during a block; the generators are then as they were.

    Every build of a run's model is made in it, so that a random base has the bits of version 0's.

    Args:
        seed: The run's.
    """
    python, numbers = random.getstate(), np.random.get_state()
    # Asking an unused device for its generator would open it.
    is_open = bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
    devices = range(torch.cuda.device_count()) if is_open else []
    with torch.random.fork_rng(devices):
        seed_everything(seed_for(seed, "initialise"), "cpu")
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numbers)


def split(
    state: State, whole: Manifest, constant: Sequence[str], is_published: bool = True
) -> Manifest:
    """
    Separate what is trained from the base part.

    The base part has the frozen parameters, those of no floating-point dtype, buffers of bool, int8 and
    uint8, and the buffers that the config names. A model without frozen or named tensors has none.

    Args:
        state: The model's tensors by name.
        whole: Manifest of all of them.
        constant: ``model.constant``: patterns of buffers.
        is_published: Whether sites will be able to fetch it.

    Raises:
        ModelMismatch: A tensor's dtype cannot travel.
        ConfigError: A pattern matches no buffer.
    """
    names = _base_names(state, whole, constant)
    if not names:
        return whole
    tensors = tuple(base_tensor(name, state[name]) for name in names)
    base = BasePart(
        digest_of(tensors, pieces(state, tensors)),
        sum(tensor.nbytes for tensor in tensors),
        tensors,
        is_published,
    )
    kept = tuple(spec for spec in whole.tensors if spec.name not in base.names)
    return Manifest(kept, whole.aliases, base=base)


def _base_names(state: State, whole: Manifest, constant: Sequence[str]) -> list[str]:
    names = [spec.name for spec in whole.tensors]
    frozen = {*whole.frozen, *(name for name in names if _is_coded_parameter(state[name]))}
    buffers = [name for name in names if not isinstance(state[name], nn.Parameter)]
    named: set[str] = set()
    for pattern in constant:
        found = {name for name in buffers if fnmatchcase(name, pattern)}
        if not found:
            what = f"{pattern!r} matches no buffer{nearest(pattern, buffers)}; leave it out"
            raise ConfigError(
                "model.constant", what, public=f"{pattern} matches no buffer of the model"
            )
        named |= found
    if not frozen and not named:
        return []
    return sorted(frozen | named | {name for name in buffers if state[name].dtype in _CODES})


def _is_coded_parameter(tensor: Tensor) -> bool:
    return isinstance(tensor, nn.Parameter) and not tensor.is_floating_point()


def base_tensor(name: str, tensor: Tensor) -> BaseTensor:
    """
    A tensor as the base part lists it.

    Raises:
        ModelMismatch: Its dtype cannot travel.
    """
    if tensor.dtype not in _NAMES:
        what = f"{tensor.dtype} cannot travel; use one of {', '.join(DTYPES)}"
        raise ModelMismatch(f"tensor {name}: {what}", public=f"a frozen tensor of {what}")
    return BaseTensor(name, _NAMES[tensor.dtype], tuple(tensor.shape))


def check_same(state: State, base: BasePart) -> None:
    """
    Refuse a model whose frozen tensors are of other dtypes or shapes than the run's.

    Raises:
        ModelMismatch: Names the tensor.
    """
    for wanted in base.tensors:
        tensor = state.get(wanted.name)
        found = None if tensor is None else base_tensor(wanted.name, tensor)
        if found != wanted:
            here = "missing" if found is None else f"{found.dtype} {found.shape}"
            raise ModelMismatch(
                f"frozen tensor {wanted.name}: {here} in this machine's model, {wanted.dtype} "
                f"{wanted.shape} in the run's; use the same task code, options and weights",
                public=True,
            )


def pieces(state: State, tensors: Sequence[BaseTensor]) -> Iterator[memoryview]:
    """The body of a base part, tensor by tensor."""
    for tensor in tensors:
        yield _bytes_of(state[tensor.name])


def _bytes_of(tensor: Tensor) -> memoryview:
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return as_bytes(flat.view(torch.uint8).numpy())


def ensure(state: State, base: BasePart, fetch: Fetch | None) -> None:
    """
    Give a freshly built model the run's base part, which is fetched only if the build has another one.

    A model on the CPU uses a writable body in place: with a private map of a file, the processes of a host
    share its pages, and a write copies a page for its process alone.

    Args:
        state: The model's tensors by name; written in place.
        fetch: Brings the body; None: there is no place to fetch it from.

    Raises:
        ModelMismatch: The build has other tensors; names one.
        DataError: It is not at this site, and cannot be fetched.
    """
    check_same(state, base)
    if digest_of(base.tensors, pieces(state, base.tensors)) == base.digest:
        return
    if fetch is None:
        raise missing(base)
    body = fetch()
    base.check_size(body)
    raw = np.frombuffer(
        body, np.uint8
    )  # Writable where the body is, such as a private map of a file.
    with torch.no_grad():
        for one, offset in base.offsets():
            _give(state[one.name], one, raw[offset : offset + one.nbytes])


def _give(tensor: Tensor, one: BaseTensor, raw: Array) -> None:
    """
    Give a tensor of a model its value: these bytes themselves where torch can use them, else a copy.

    Args:
        raw: The value, uint8.
    """
    dtype = DTYPES[one.dtype]
    is_usable = raw.flags.writeable and raw.size and not raw.ctypes.data % dtype.itemsize
    if is_usable and tensor.device.type == "cpu" and tensor.is_contiguous():
        tensor.data = torch.from_numpy(raw).view(dtype).reshape(one.shape)
    else:
        tensor.copy_(_copied(one, raw))


def _copied(one: BaseTensor, raw: Array) -> Tensor:
    # A copy: views of a file are read-only, and need not be aligned.
    return torch.from_numpy(raw.copy()).view(DTYPES[one.dtype]).reshape(one.shape)


def tensors_of(base: BasePart, body: bytes | bytearray | memoryview) -> dict[str, Tensor]:
    """
    The tensors of a base part by name, copied from its body.

    Raises:
        MessageError: The body is not of its size.
    """
    views = base.views(body)
    return {
        one.name: _copied(one, np.frombuffer(views[one.name], np.uint8)) for one in base.tensors
    }


class Untouched:
    """
    Watches over the base part of a model during a training, without reading all of it.

    torch counts the changes of a tensor made in place; a few elements show a change that it does not count
    (``tensor.data``).

    Args:
        state: The model's tensors by name, before the training.
        base: The run's; None: nothing is watched.
    """

    def __init__(self, state: State, base: BasePart | None) -> None:
        self._names = [tensor.name for tensor in base.tensors] if base is not None else []
        self._marks = {name: _mark(state[name]) for name in self._names}

    def check(self, state: State) -> None:
        """
        Refuse a training that changed what is frozen: that would be lost, as nothing of it is sent.

        Args:
            state: The same model's, after the training.

        Raises:
            ModelMismatch: Names the tensor.
        """
        for name in self._names:
            if name not in state or _mark(state[name]) != self._marks[name]:
                raise ModelMismatch(
                    f"parameter {name} is frozen (requires_grad = False) in the model that the task "
                    "builds, and its training changed it; build the model with it unfrozen",
                    public=True,
                )


def _mark(tensor: Tensor) -> tuple[int, torch.dtype, bytes]:
    found = tensor.detach()
    if found.is_contiguous() and found.numel():
        looked_at = found.view(-1)[:: max(1, found.numel() // _LOOKED_AT)]
    else:
        looked_at = found[(0,) * found.dim()] if found.numel() else found.reshape(-1)
    changes = 0 if tensor.is_inference() else tensor._version
    return changes, tensor.dtype, bytes(_bytes_of(looked_at))
