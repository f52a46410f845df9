"""
The child process that reads a torch file: its tensors alone, written as a safetensors file.

    python -m fl_queue.training.torch_file SOURCE TARGET

``weights_only`` has torch rebuild tensors and plain containers, and refuse whatever else a pickle names, so a
file that holds code is never run. The process ends after one file: what a damaged one breaks ends with it.
"""

from __future__ import annotations

import pickle
import sys
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch

from fl_queue.common import files
from fl_queue.common.safetensors_head import safetensors_head

#: Exit status with a reason on standard output.
CANNOT_READ = 3
_ARCHIVE = b"PK\x03\x04"
#: Tensors that repeat their elements (``expand``), or one another (tied weights), may be larger than their file: each
#: of them up to this many bytes, and all together this many times the file.
_REPEATED_BYTES, _REPEATED_TIMES = 16 * 1024**2, 32
#: dtype -> its name in a safetensors file.
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
#: Where training scripts keep the table of tensors, beside an optimizer's state and the like.
TABLES = ("state_dict", "model_state_dict", "model")


class Unreadable(Exception):
    """A file without tensors that can be read; its text is the reason."""


def main() -> None:
    """Convert the first argument to the second; end with ``CANNOT_READ`` and a reason on standard output."""
    try:
        convert(*map(Path, sys.argv[1:3]))
    except Unreadable as exc:
        sys.stdout.write(f"{exc}\n")
        sys.exit(CANNOT_READ)


def convert(source: Path, target: Path) -> None:
    """
    Write the tensors of a torch file as a safetensors file.

    Raises:
        Unreadable: It holds code, no tensors, or tensors that no model has; it is damaged, or would expand
            to much more than its size.
    """
    _check_archive(source)
    tensors = _tensors(_load(source))
    _check_sizes(tensors, source.stat().st_size)
    _write(tensors, target)


def _check_archive(path: Path) -> None:
    """
    Look at the directory of an archive before anything of it is read.

    Raises:
        Unreadable: A part is compressed, or the parts are larger than the file.
    """
    with path.open("rb") as file:
        if file.read(len(_ARCHIVE)) != _ARCHIVE:
            return
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError) as exc:
        raise Unreadable("is not a readable torch file; save model.state_dict() again") from exc
    if any("/code/" in part.filename for part in parts):
        raise Unreadable("holds code, and only tensors are read")
    compressed = [
        part
        for part in parts
        if part.compress_type != zipfile.ZIP_STORED or part.file_size != part.compress_size
    ]
    if compressed:
        part = max(compressed, key=lambda one: one.file_size)
        raise Unreadable(
            f"its part {part.filename[:80]!r} is compressed, {part.file_size:,} bytes in {part.compress_size:,}, "
            "and torch compresses none; save model.state_dict() again"
        )
    total, size = sum(part.file_size for part in parts), path.stat().st_size
    if total > size:
        raise Unreadable(
            f"its parts have {total:,} bytes, and the file {size:,}; save model.state_dict() again"
        )


def _check_sizes(tensors: Mapping[str, torch.Tensor], size: int) -> None:
    """
    Look at the sizes of tensors before their elements are written out.

    Args:
        size: Bytes of the file.

    Raises:
        Unreadable: A tensor, or all of them, would be much larger than the file.
    """
    total, most = 0, _REPEATED_TIMES * size + _REPEATED_BYTES
    for name, tensor in tensors.items():
        nbytes = tensor.numel() * tensor.element_size()
        total += nbytes
        if nbytes > max(size, _REPEATED_BYTES):
            raise Unreadable(
                f"tensor {name[:80]!r} of shape {list(tensor.shape)} would have {nbytes:,} bytes, and the file has "
                f"{size:,}: its elements repeat; save what they are, and repeat them in the model"
            )
        if total > most:
            raise Unreadable(
                f"its tensors up to {name[:80]!r} would have {total:,} bytes, more than {most:,} "
                f"({_REPEATED_TIMES} times the file): they repeat one another; save each of them once"
            )


def _load(path: Path) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _load_tensors(path)
    except pickle.UnpicklingError as exc:
        raise Unreadable("holds code, and only tensors are read") from exc
    # What a damaged file raises is not documented. This process is the job's child: RQ's timeout is not raised here.
    except Exception as exc:
        if "TorchScript" in str(exc):
            raise Unreadable("holds code, and only tensors are read") from exc
        raise Unreadable("is not a readable torch file; save model.state_dict() again") from exc


def _load_tensors(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as exc:
        if "mmap can only be used" not in str(exc):
            raise
    # A file of before torch 1.6, which cannot be mapped.
    return torch.load(path, map_location="cpu", weights_only=True)


def _tensors(found: object) -> dict[str, torch.Tensor]:
    """The table of tensors of a file: the file itself, or the one of its parts that is called so."""
    for part in (found, *(found.get(name) for name in TABLES if isinstance(found, Mapping))):
        if isinstance(part, Mapping) and any(
            isinstance(each, torch.Tensor) for each in part.values()
        ):
            named = {str(name): each for name, each in part.items()}
            # The extra state of a module may be of any type, and is no tensor of a model.
            return {name: each for name, each in named.items() if isinstance(each, torch.Tensor)}
    raise Unreadable("holds no table of tensors; save model.state_dict()")


def _write(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    entries, offset = {}, 0
    for name, tensor in tensors.items():
        if tensor.dtype not in _NAMES or tensor.layout != torch.strided or tensor.is_meta:
            kind = tensor.dtype if tensor.layout == torch.strided else tensor.layout
            raise Unreadable(f"tensor {name!r} is {kind}; convert its tensors to float32")
        end = offset + tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    with files.create(path) as out:
        out.write(safetensors_head(entries))
        for tensor in tensors.values():
            flat = tensor.detach().contiguous().reshape(-1)
            if flat.numel():
                out.write(flat.view(torch.uint8).numpy().data)


if __name__ == "__main__":
    main()
