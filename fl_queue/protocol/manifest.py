"""
Manifest of a run's model: name, shape and kind of each tensor, and their order in a body.

A body is the tensors that are trained. What is frozen is named once, as the run's base part
(``base_part.py``); in runs that began before there were base parts it is in each body, and ``frozen`` names
it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

import numpy as np

from fl_queue.common import safe_json
from fl_queue.common.safe_json import dumps
from fl_queue.common.schema import Custom, PlainData
from fl_queue.errors import MessageError
from fl_queue.protocol.base_part import MAX_DIMENSIONS as MAX_DIMENSIONS
from fl_queue.protocol.base_part import BasePart, read_shape

#: ``extra``: what clients send beside a parameter; in updates only, never in a model.
Kind = Literal["parameter", "float_buffer", "integer_buffer", "extra"]
KINDS: tuple[Kind, ...] = ("parameter", "float_buffer", "integer_buffer", "extra")
#: Names of extra tensors begin with it, and those of no model's: ``~<extra>/<parameter>``.
EXTRA = "~"
#: dtype of a tensor of each kind in a model and in an update (little-endian, C order).
DTYPES: dict[str, str] = {
    "parameter": "float32",
    "float_buffer": "float32",
    "integer_buffer": "int64",
    "extra": "float32",
}
#: In ``model.private``: everything of a model's BatchNorm layers, whatever their names.
BATCH_NORM = "@batch_norm"


@dataclass(frozen=True)
class TensorSpec:
    """One shared tensor of the model; ``kind`` decides its dtype and how it is merged."""

    name: str
    shape: Annotated[tuple[int, ...], Custom(read_shape)]
    kind: Kind

    @property
    def dtype(self) -> str:
        """Type of its elements, as numpy names it."""
        return DTYPES[self.kind]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def quantity(self) -> str:
        """Name under which it is summed: its kind, or the name of the extra."""
        return self.name[len(EXTRA) :].partition("/")[0] if self.kind == "extra" else self.kind

    @property
    def nbytes(self) -> int:
        """Bytes in a body."""
        return self.size * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Adapters:
    """
    How peft saves the trained tensors of a model.

    Args:
        config: Content of ``adapter_config.json``.
        names: Name in ``adapter_model.safetensors`` -> name in the model.
    """

    config: Annotated[Mapping[str, Any], PlainData(4096, 4096, 6)]
    names: Mapping[str, str]


@dataclass(frozen=True)
class Manifest:
    """
    The tensors of a run's model, sorted by name, and how they lie in a body.

    Args:
        tensors: Specs sorted by name, names unique.
        aliases: Name -> the name it shares storage with (tied weights); aliases do not travel.
        private: Names of the tensors whose values stay on each client; a version has those that
            version 0 had.
        frozen: Names of the parameters that are not trained: every version has those of version 0.
            Empty where there is a base part.
        base: What is not trained, where it is no part of a body; None: nothing is frozen, or the run
            began before there were base parts.
        adapters: Of a model with peft's adapters.
    """

    tensors: tuple[TensorSpec, ...]
    aliases: Mapping[str, str] = field(default_factory=dict)
    private: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    base: BasePart | None = None
    adapters: Adapters | None = None

    def __post_init__(self) -> None:
        names = [spec.name for spec in self.tensors]
        if names != sorted(set(names)):
            raise MessageError("manifest: tensor names must be unique and sorted")
        if any(spec.kind not in KINDS for spec in self.tensors):
            raise MessageError(f"manifest: a tensor kind is not one of {', '.join(KINDS)}")
        if any(dimension < 0 for spec in self.tensors for dimension in spec.shape):
            raise MessageError("manifest: a dimension is negative")
        if not set(self.private) <= set(names):
            raise MessageError("manifest: a private tensor is not there")
        parameters = {spec.name for spec in self.tensors if spec.kind == "parameter"}
        if not set(self.frozen) <= parameters:
            raise MessageError("manifest: a frozen tensor is not there, or no parameter")
        if self.base is not None and (self.frozen or not self.base.names.isdisjoint(names)):
            raise MessageError("manifest: a tensor of the base part is in the body, too")
        known = {*self.names, *self.aliases}
        if self.adapters is not None and not known.issuperset(self.adapters.names.values()):
            raise MessageError("manifest: a tensor of the adapters is not there")

    @property
    def nbytes(self) -> int:
        """Bytes of a body: the tensors one after the other, without gaps."""
        return sum(spec.nbytes for spec in self.tensors)

    @property
    def head(self) -> bytes:
        """Bytes that a version's digest covers before the body: none."""
        return b""

    @property
    def initial_nbytes(self) -> int:
        """Bytes of version 0 as its maker sends it: its body, and behind it the base part to publish."""
        return self.nbytes + (self.published.nbytes if self.published is not None else 0)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the model's tensors, those of the base part among them, sorted."""
        found = (spec.name for spec in self.tensors)
        return tuple(sorted((*found, *(self.base.names if self.base is not None else ()))))

    @property
    def published(self) -> BasePart | None:
        """The base part, if sites can fetch it."""
        return self.base if self.base is not None and self.base.is_published else None

    def offsets(self) -> Iterable[tuple[TensorSpec, int]]:
        """Each spec with its byte offset in a body."""
        offset = 0
        for spec in self.tensors:
            yield spec, offset
            offset += spec.nbytes

    def shared(self) -> Manifest:
        """The same without private and frozen tensors: what an update has of the model."""
        left_out = {*self.private, *self.frozen}
        if not left_out:
            return self
        return Manifest(tuple(spec for spec in self.tensors if spec.name not in left_out))

    def to_json(self) -> str:
        """JSON with sorted keys."""
        fields: dict[str, Any] = {
            "tensors": [asdict(spec) for spec in self.tensors],
            "aliases": dict(self.aliases),
        }
        parts = {"private": list(self.private), "frozen": list(self.frozen)}
        fields |= {part: names for part, names in parts.items() if names}
        fields |= {"base": asdict(self.base)} if self.base is not None else {}
        return dumps(fields | ({"adapters": asdict(self.adapters)} if self.adapters else {}))

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """A manifest from its JSON. Raises MessageError."""
        made = safe_json.decode(cls, text, "a manifest")
        names = {spec.name for spec in made.tensors} | (made.base.names if made.base else set())
        is_extra = any(spec.kind == "extra" for spec in made.tensors)
        if is_extra or any(name.startswith(EXTRA) for name in names):
            raise MessageError(
                f"manifest: a model's tensor is extra, or its name begins with {EXTRA}"
            )
        return made


def extra_name(extra: str, parameter: str) -> str:
    """Name in an update of what clients send as an extra beside a parameter."""
    return f"{EXTRA}{extra}/{parameter}"
