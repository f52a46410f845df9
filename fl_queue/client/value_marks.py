"""
Marks of values: what an attribute, a global or a data set holds, so that a change inside it is seen.

A walk reads ``__dict__`` and the items of containers, and calls nothing of a task's own: no property, no ``__eq__``.
What it keeps is plain values, identities and digests. Imports torch; no Redis here.
"""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
import random
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePath
from types import (
    BuiltinMethodType,
    FunctionType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
)
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from fl_queue.tasks.base import ClientData, Task

#: Blocks of an array that are looked at, and bytes of each.
_BLOCKS, _BYTES = 64, 64
#: Items of a container up to which all are looked at; of a longer one so many, evenly spaced.
_ITEMS, _SAMPLED = 1000, 250
#: Values that one walk looks at; of the others the identity counts.
_MOST = 5000
#: Levels below an attribute: a container costs one, an object two.
_DEPTH = 4
_SETS = (set, frozenset)
_SEQUENCES = (list, tuple, deque, *_SETS)
_PLAIN = (type(None), bool, int, str, bytes)
_GENERATORS = (
    torch.Generator,
    random.Random,
    np.random.Generator,
    np.random.RandomState,
    np.random.BitGenerator,
)


def of_value(value: Any, own: frozenset[str] = frozenset()) -> Any:
    """
    The mark of a value.

    Args:
        own: Modules whose classes and functions are looked into, too.
    """
    return _Walk(own).of(value, _DEPTH)


def of_data(found: Any, own: frozenset[str] = frozenset()) -> Any:
    """The mark of a data set, of wrapped ones, and of lists of them."""
    return _Walk(own).of(found, _DEPTH + 2)


def sampled(values: Any) -> bytes:
    """Digest of some blocks of an array: a write through numpy changes no version of a tensor."""
    values = np.asarray(values)
    if values.dtype.hasobject:
        return b""
    if values.flags.c_contiguous or values.flags.f_contiguous:
        flat = values.ravel(order="K").view(np.uint8) if values.size else values.ravel()
        looked_at = flat if len(flat) <= _BLOCKS * _BYTES else flat[_places(len(flat), _BYTES)]
    else:  # Never copied as a whole.
        looked_at = values.flat[_places(values.size, max(1, _BYTES // values.itemsize))]
    return hashlib.blake2b(looked_at.tobytes(), digest_size=16).digest()


@functools.lru_cache(maxsize=256)
def _places(length: int, block: int) -> Any:
    starts = np.linspace(0, max(length - block, 0), _BLOCKS).astype(np.int64)
    places = (starts[:, None] + np.arange(block)).reshape(-1)
    return np.unique(np.minimum(places, length - 1))


def _of_tensor(tensor: Tensor) -> Any:
    version = -1 if tensor.is_inference() else tensor._version
    if tensor.device.type != "cpu" or tensor.layout is not torch.strided:
        return id(tensor), version
    # Its storage as bytes: numpy knows neither bfloat16 nor every other dtype.
    stored = tensor.untyped_storage()
    if not stored.nbytes():
        return id(tensor), version
    return id(tensor), version, sampled(torch.empty(0, dtype=torch.uint8).set_(stored).numpy())


def _of_generator(value: Any) -> Any:
    """State of a generator of random numbers; None: it is none, or the process's, which every phase seeds."""
    if value is random._inst or value is torch.default_generator:
        return "the process's"
    if value is np.random.mtrand._rand or value in torch.cuda.default_generators:
        return "the process's"
    if isinstance(value, torch.Generator):
        return value.get_state().cpu().numpy().tobytes()
    if isinstance(value, np.random.Generator):
        value = value.bit_generator
    if isinstance(value, np.random.RandomState):
        return _plain(value.get_state(legacy=False))
    if isinstance(value, np.random.BitGenerator):
        return _plain(value.state)
    if isinstance(value, random.Random) and not isinstance(value, random.SystemRandom):
        return random.Random.getstate(value)
    return None


def _plain(state: Any) -> Any:
    if isinstance(state, Mapping):
        return tuple((name, _plain(one)) for name, one in state.items())
    return state.tobytes() if isinstance(state, np.ndarray) else state


class _Walk:
    """One walk; what it meets a second time counts by identity. Args: ``own``: as of ``of_value``."""

    def __init__(self, own: frozenset[str]) -> None:
        self._own = own
        self._seen: set[int] = set()
        self._left = _MOST

    def of(self, value: Any, depth: int) -> Any:
        """The mark of a value. Args: ``depth``: levels that are left."""
        kind = type(value)  # ``isinstance`` would ask the ``__class__`` of a proxy.
        if issubclass(kind, _PLAIN):
            return kind, value
        if issubclass(kind, (float, complex)):
            return repr(value)  # A NaN equals no other.
        if issubclass(kind, PurePath) and kind.__module__.startswith("pathlib"):
            return kind, str(value)  # It caches its parts in slots.
        self._left -= 1
        if id(value) in self._seen or self._left < 0:
            return id(value)
        self._seen.add(id(value))
        if issubclass(kind, Tensor):
            return _of_tensor(value)
        if issubclass(kind, np.ndarray):
            return id(value), sampled(value), self._objects(value, depth)
        if issubclass(kind, _GENERATORS):
            return id(value), _of_generator(value)
        return self._of_container(value, depth) or self._of_object(value, depth)

    def _objects(self, values: Any, depth: int) -> Any:
        if not values.dtype.hasobject or depth <= 0 or values.dtype.names:
            return ()
        places = range(0, values.size, _step(values.size))
        return tuple(self.of(values.flat[place], depth - 1) for place in places)

    def _of_container(self, value: Any, depth: int) -> Any:
        """The mark of a container; None: it is none. A subclass's own methods are not called."""
        kind = type(value)
        if issubclass(kind, (bytearray, array)):
            return id(value), len(value), sampled(np.frombuffer(value, np.uint8))
        if issubclass(kind, dict):
            return id(value), dict.__len__(value), self._pairs(dict.items(value), depth - 1)
        base = next((one for one in _SEQUENCES if issubclass(kind, one)), None)
        if base is None:
            return None
        # Tuples are made anew by what only reads them.
        name = 0 if base is tuple else id(value)
        items = [self.of(one, depth - 1) for one in _chosen(base, value)] if depth > 0 else []
        return name, base.__len__(value), (frozenset if base in _SETS else tuple)(items)

    def _pairs(self, items: Iterable[tuple[Any, Any]], depth: int) -> Any:
        # A copy: other threads may write meanwhile.
        chosen = list(itertools.islice(items, _ITEMS)) if depth >= 0 else []
        return tuple([(self.of(name, 0), self.of(one, depth)) for name, one in chosen])

    def _of_object(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if issubclass(kind, (MethodType, BuiltinMethodType)):
            return "method", self.of(value.__self__, depth)
        if issubclass(kind, (ModuleType, io.IOBase)):
            return id(value)
        if issubclass(kind, FunctionType):
            return id(value), self._of_function(value, depth)
        if issubclass(kind, type):
            is_own = type.__getattribute__(value, "__module__") in self._own
            return id(value), self._pairs(_lasting(value, vars(value)), depth - 2 if is_own else -1)
        if kind.__module__ in ("builtins", "itertools") and hasattr(kind, "__next__"):
            return object()  # How far it is cannot be looked at: it has always changed.
        if issubclass(kind, nn.Module):
            return id(value), self._of_module(value)
        # Depth 0 is reached by what only holds it, such as a list of samples.
        below = depth - (1 if issubclass(kind, (Dataset, ClientData)) else 2)
        return id(value), self._pairs(_attributes(value), below if depth > 0 else -1)

    def _of_function(self, value: FunctionType, depth: int) -> Any:
        if value.__module__ not in self._own or depth <= 0:
            return ()
        cells = [_content(cell) for cell in value.__closure__ or ()]
        parts = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values(), *cells]
        return self._pairs(enumerate(parts), depth - 1), self._pairs(vars(value).items(), depth - 1)

    def _of_module(self, value: nn.Module) -> Any:
        """All tensors of a model, and the plain attributes of its parts."""
        found: list[Any] = []
        for module in nn.Module.modules(value):
            self._seen.add(id(module))
            for name, one in list(vars(module).items()):
                if name in ("_parameters", "_buffers"):
                    found.append(
                        [None if held is None else _of_tensor(held) for held in one.values()]
                    )
                elif not name.startswith("_"):
                    found.append((name, self.of(one, 1)))
        return found


def _chosen(base: Any, value: Any) -> Any:
    """The items of a sequence or a set, or some of a long one, evenly spaced."""
    count = base.__len__(value)
    if base in _SETS or base is deque:
        return list(itertools.islice(base.__iter__(value), _ITEMS))
    return base.__getitem__(value, slice(0, None, _step(count)))


def _step(count: int) -> int:
    return 1 if count <= _ITEMS else count // _SAMPLED


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # It is empty.
        return None


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    """Attributes of an object, but for those that are never of an effect: cached properties, ``unmarked``."""
    try:
        plain = object.__getattribute__(value, "__dict__")
    except AttributeError:
        plain = {}
    kind: Any = type(value)
    yield from _lasting(kind, plain)
    for name, slot in _slots(kind):
        try:
            yield name, slot.__get__(value)
        except AttributeError:  # It is not set.
            continue


def _lasting(kind: type, plain: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    left_out = _left_out(kind)
    return ((name, one) for name, one in list(plain.items()) if name not in left_out)


@functools.lru_cache(maxsize=1024)
def _left_out(kind: type) -> frozenset[str]:
    found = {"__weakref__", "__dict__", "_abc_impl"}
    for one in kind.__mro__:
        unmarked = vars(one).get("unmarked", ())
        if issubclass(one, (Task, Dataset)) and isinstance(unmarked, tuple):
            found |= set(unmarked)
        found |= {
            name for name, held in vars(one).items() if isinstance(held, functools.cached_property)
        }
    return frozenset(found)


@functools.lru_cache(maxsize=1024)
def _slots(kind: type) -> tuple[tuple[str, Any], ...]:
    return tuple(
        (name, held)
        for one in kind.__mro__
        if "__slots__" in vars(one)
        for name, held in vars(one).items()
        if isinstance(held, MemberDescriptorType)
    )
