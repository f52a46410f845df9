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
from collections.abc import Mapping
from pathlib import Path

import torch

from fl_queue.common import files
from fl_queue.common.safetensors_head import safetensors_head

#: Exit status with a reason on standard output.
CANNOT_READ = 3
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
        Unreadable: It holds code, no tensors, or tensors that no model has; or it is damaged.
    """
    _write(_tensors(_load(source)), target)


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
