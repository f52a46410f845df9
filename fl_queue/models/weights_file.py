"""
Files of weights that a run may begin with: safetensors and torch files, as bytes of named tensors.

A safetensors file is read here, bfloat16 included, of which numpy knows nothing. A torch file is a pickle: a
child process reads its tensors alone (``training/torch_file.py``) and writes them as safetensors. Nothing is
unpickled in this process, which needs no torch.
"""

from __future__ import annotations

import math
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from fl_queue.common import safe_json
from fl_queue.common.files import Mapped
from fl_queue.common.own_modules import python_command
from fl_queue.common.schema import Custom, Invalid
from fl_queue.errors import DataError, MessageError
from fl_queue.protocol import tensor_layout
from fl_queue.protocol.arrays import Tensor

#: As the safetensors library limits the header of a file.
_LONGEST_HEADER = 100_000_000
#: A torch file is a zip archive, or of before torch 1.6 a pickle.
_TORCH_MAGIC = (b"PK\x03\x04", b"\x80")
#: Exit status of the child process with its reason on standard output.
CANNOT_READ = 3
#: dtype in a file -> numpy's, or that of the bytes of a bfloat16.
_FILE_DTYPES: Mapping[str, str] = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "|u1",
    "BOOL": "|b1",
}
BFLOAT16 = "bfloat16"


@dataclass(frozen=True)
class Weight:
    """
    One tensor of a file.

    Args:
        dtype: As it travels to the worker that makes version 0: ``float32``, ``float16``, ``bfloat16`` or
            ``int64``.
        shape: Its dimensions.
        stored: Its elements in the file's dtype; a bfloat16 as unsigned 16-bit integers.
    """

    dtype: str
    shape: tuple[int, ...]
    stored: Tensor

    def raw(self) -> Tensor:
        """Its elements as they travel, flat, little-endian: smaller floats as they are."""
        if self.dtype in (BFLOAT16, "float16"):
            return self.stored
        with np.errstate(over="ignore"):  # A float64 may become infinite, which its reader refuses.
            return np.ascontiguousarray(self.stored, "<f4" if self.dtype == "float32" else "<i8")

    def widened(self) -> Tensor:
        """Its elements as a model has them: float32 or int64; exact for smaller floats."""
        return elements(self.raw(), self.dtype, self.shape)


def elements(raw: tensor_layout.Bytes | Tensor, dtype: str, shape: tuple[int, ...]) -> Tensor:
    """
    The elements of a tensor from its bytes, floats in float32, in their shape.

    Args:
        dtype: As of ``Weight``.

    Source:
        A bfloat16 has the upper 16 bits of a float32.
    """
    view = tensor_layout.as_bytes(raw)
    if dtype == BFLOAT16:
        bits = np.frombuffer(view, "<u2").astype("<u4") << np.uint32(16)
        return bits.view("<f4").reshape(shape)
    found = np.frombuffer(view, np.dtype(dtype).newbyteorder("<"))
    return (found.astype("<f4") if dtype == "float16" else found).reshape(shape)


def itemsize(dtype: str) -> int:
    """Bytes of one element as it travels. Args: ``dtype``: as of ``Weight``."""
    return 2 if dtype == BFLOAT16 else np.dtype(dtype).itemsize


@dataclass(frozen=True)
class WeightsFile:
    """
    The tensors of a file by name, mapped from disk.

    Args:
        digest: BLAKE3 of the file as it is named, hexadecimal.
        weights: Name -> tensor.
    """

    digest: str
    weights: Mapping[str, Weight]


@contextmanager
def reading(path: Path) -> Iterator[WeightsFile]:
    """
    Open a file of weights; its tensors are there until the end of the block.

    Raises:
        DataError: It cannot be read, is of neither kind, or holds code; names the cause and the fix.
    """
    mapped = _mapped(path)
    digest = tensor_layout.body_digest(mapped.view)
    head = bytes(mapped.view[:9])
    if head.startswith(_TORCH_MAGIC) and head[8:] != b"{":
        with tempfile.TemporaryDirectory(prefix="flq-weights-") as folder:
            converted = Path(folder) / "weights.safetensors"
            _convert(path, converted)
            yield WeightsFile(digest, _weights(path, _mapped(converted).view))
    else:
        yield WeightsFile(digest, _weights(path, mapped.view))


def _mapped(path: Path) -> Mapped:
    try:
        return Mapped(path)
    except FileNotFoundError as exc:
        raise DataError(str(path), "no such file") from exc
    except OSError as exc:
        raise DataError(str(path), f"cannot be read: {exc.strerror or exc}") from exc


def _convert(source: Path, target: Path) -> None:
    """Write the tensors of a torch file as safetensors. Raises DataError."""
    command = python_command("-m", "fl_queue.training.torch_file", str(source), str(target))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == CANNOT_READ:
        raise DataError(str(source), safe_json.printable(done.stdout.strip()))
    if done.returncode:
        last = safe_json.printable((done.stderr.strip().splitlines() or ["no message"])[-1])
        raise DataError(
            str(source),
            f"cannot be read as a torch file ({last[:200]}); save its tensors as safetensors",
        )


def _read_shape(value: Any) -> tuple[int, ...]:
    if type(value) is not list or not all(type(n) is int and 0 <= n < 2**63 for n in value):
        raise Invalid("is not a list of dimensions")
    return tuple(value)


def _read_offsets(value: Any) -> tuple[int, int]:
    if type(value) is not list or [type(n) for n in value] != [int, int]:
        raise Invalid("is not a pair of offsets")
    return value[0], value[1]


@dataclass(frozen=True)
class _Entry:
    """One tensor in the header of a safetensors file."""

    dtype: str
    shape: Annotated[tuple[int, ...], Custom(_read_shape)]
    data_offsets: Annotated[tuple[int, int], Custom(_read_offsets)]


def _weights(path: Path, view: memoryview) -> dict[str, Weight]:
    """The tensors of a safetensors file. Args: ``path``: for messages. Raises DataError."""
    try:
        return dict(_parsed(path, view))
    except MessageError as exc:
        reason = f"is not a readable safetensors file: {exc.reason}"
        raise DataError(str(path), reason) from exc


def _parsed(path: Path, view: memoryview) -> Iterator[tuple[str, Weight]]:
    length = int.from_bytes(view[:8], "little")
    if len(view) < 8 or not 2 <= length <= min(len(view) - 8, _LONGEST_HEADER):
        raise MessageError("it has no header")
    entries = safe_json.loads(bytes(view[8 : 8 + length]), "the header of a safetensors file")
    if type(entries) is not dict:
        raise MessageError("its header is no table")
    data = view[8 + length :]
    for name, raw in sorted(entries.items()):
        if name == "__metadata__":
            continue
        entry = safe_json.record(_Entry, raw, f"the entry of tensor {name!r}")
        if entry.dtype not in _FILE_DTYPES:
            reason = f"tensor {name!r} has dtype {entry.dtype}; convert its tensors to float32"
            raise DataError(str(path), reason)
        yield name, _weight(name, entry, data)


def _weight(name: str, entry: _Entry, data: memoryview) -> Weight:
    dtype = np.dtype(_FILE_DTYPES[entry.dtype])
    begin, end = entry.data_offsets
    if not 0 <= begin <= end <= len(data) or end - begin != math.prod(entry.shape) * dtype.itemsize:
        raise MessageError(f"the bytes of tensor {name!r} are not in the file")
    stored = np.frombuffer(data[begin:end], dtype) if end > begin else np.empty(0, dtype)
    return Weight(_travelling(entry.dtype), entry.shape, stored)


def _travelling(dtype: str) -> str:
    if dtype == "BF16":
        return BFLOAT16
    if dtype == "F16":
        return "float16"
    return "float32" if dtype.startswith("F") else "int64"
