"""Files of weights: safetensors and torch files as bytes; what holds code is refused and never run."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from fl_queue.errors import DataError
from fl_queue.models import weights_file
from fl_queue.training import torch_file

TENSORS = {
    "a": torch.tensor([[1.5, -2.0], [0.1, 3.0]]),
    "half": torch.tensor([0.1, -65504.0], dtype=torch.float16),
    "brain": torch.tensor([0.1, 3e38, -0.0, float("inf")], dtype=torch.bfloat16),
    "double": torch.tensor([0.1], dtype=torch.float64),
    "n": torch.tensor(7),
    "byte": torch.tensor([255], dtype=torch.uint8),
    "mask": torch.tensor([True, False]),
    "none": torch.empty(0, 3),
}
BFLOAT16 = b'{"w":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}'


def safetensors(head: bytes, data: bytes = b"") -> bytes:
    return len(head).to_bytes(8, "little") + head + data


def saved(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


@pytest.fixture(autouse=True)
def here(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch files are read in this process, which has torch: a child process takes seconds to import it."""

    def convert(source: Path, target: Path) -> None:
        try:
            torch_file.convert(source, target)
        except torch_file.Unreadable as exc:
            raise DataError(str(source), str(exc)) from exc

    if "child_process" not in request.fixturenames:
        monkeypatch.setattr(weights_file, "_convert", convert)


@pytest.fixture
def child_process() -> None:
    """Torch files are read as outside the tests."""


def widened(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    with weights_file.reading(path) as file:
        return {name: np.array(weight.widened()) for name, weight in file.weights.items()}


WRITERS: dict[str, Callable[[Path], Any]] = {
    "safetensors": lambda path: save_file(TENSORS, path),
    "torch": lambda path: torch.save(TENSORS, path),
    "older torch": lambda path: torch.save(TENSORS, path, _use_new_zipfile_serialization=False),
    "a checkpoint of a script": lambda path: torch.save(
        {"epoch": 3, "optimizer": {"lr": 0.1}, "state_dict": TENSORS}, path
    ),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_tensors_are_read_as_a_model_has_them(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "weights"
    WRITERS[kind](path)
    found = widened(path)
    assert list(found) == sorted(TENSORS)
    for name, tensor in TENSORS.items():
        wanted = tensor.float() if tensor.is_floating_point() else tensor.long()
        assert found[name].dtype == wanted.numpy().dtype
        assert found[name].shape == tuple(tensor.shape)
        assert found[name].tobytes() == wanted.numpy().tobytes()


def test_smaller_floats_travel_as_they_are(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "w")
    with weights_file.reading(tmp_path / "w") as file:
        sizes = {name: weight.raw().nbytes for name, weight in file.weights.items()}
        assert sizes == {
            "a": 16, "half": 4, "brain": 8, "double": 4, "n": 8, "byte": 8, "mask": 16, "none": 0
        }  # fmt: skip
        for name, weight in file.weights.items():
            raw = weight.raw()
            assert raw.nbytes == raw.size * weights_file.itemsize(weight.dtype)
            again = weights_file.elements(raw, weight.dtype, weight.shape)
            assert again.tobytes() == weight.widened().tobytes(), name


def test_tied_and_strided_tensors_of_a_torch_file_are_written_out(tmp_path: Path) -> None:
    base = torch.arange(6.0).reshape(2, 3)
    path = saved(tmp_path / "w.pt", {"t": base.T, "a": base, "b": base, "row": base[1]})
    found = widened(path)
    assert np.array_equal(found["t"], base.T.numpy())
    assert np.array_equal(found["a"], found["b"])
    assert np.array_equal(found["row"], [3.0, 4.0, 5.0])


class _Code:
    """Pickled, it makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("form", ["zip", "older", "pickle", "module", "script"])
def test_a_file_that_holds_code_is_refused_and_never_run(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # torch would unpickle everything for this variable where weights_only is not given.
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    made, path = tmp_path / "made", tmp_path / "weights.pt"
    hostile = {"a": torch.ones(2), "x": _Code(made)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(_Code(made), protocol=2))
    elif form == "module":
        torch.save(nn.Linear(2, 2), path)
    elif form == "script":
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), path)
    else:
        torch.save(hostile, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(DataError) as caught, weights_file.reading(path):
        pass
    assert str(caught.value) == f"{path}: holds code, and only tensors are read"
    assert not made.exists()
    if form in ("zip", "older"):
        torch.load(path, weights_only=False)
        assert made.exists()  # So it would have been run.


@pytest.mark.usefixtures("child_process")
def test_a_child_process_refuses_code(tmp_path: Path) -> None:
    made = tmp_path / "made"
    path = saved(tmp_path / "weights.pt", {"w": torch.ones(2), "x": _Code(made)})
    with pytest.raises(DataError, match=r"weights\.pt: holds code, and only tensors are read"):
        widened(path)
    assert not made.exists()


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (None, "no such file"),
        (b"", "not a readable safetensors file: it has no header"),
        (b"hello, this is no file of weights", "not a readable safetensors file"),
        (b"PK\x03\x04 and no more", "not a readable torch file"),
        (safetensors(b"[]"), "its header is no table"),
        (safetensors(b"{oh no}"), "not a readable safetensors file"),
        (safetensors(BFLOAT16, bytes(3)), "bytes of tensor 'w' are not in the file"),
        (safetensors(BFLOAT16.replace(b"[2]", b"[3]"), bytes(4)), "bytes of tensor 'w'"),
        (safetensors(BFLOAT16.replace(b"[2]", b"[-2]"), bytes(4)), "entry of tensor 'w'"),
        (safetensors(BFLOAT16.replace(b"[0,4]", b"[4,0]"), bytes(4)), "bytes of tensor 'w'"),
        (safetensors(BFLOAT16.replace(b"BF16", b"F8_E5M2"), bytes(4)), "F8_E5M2; convert"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, content: bytes | None, word: str) -> None:
    path = tmp_path / "initial.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as caught, weights_file.reading(path):
        pass
    assert caught.value.path == str(path)
    assert word in caught.value.reason


def test_a_folder_is_no_file_of_weights(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught, weights_file.reading(tmp_path):
        pass
    assert caught.value.path == str(tmp_path)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ([1, 2], "no table of tensors"),
        ({"epoch": 1}, "no table of tensors"),
        ({"z": torch.ones(2, dtype=torch.complex64)}, "'z' is torch.complex64; convert"),
        ({"z": torch.ones(2, 2).to_sparse()}, "'z' is torch.sparse_coo; convert"),
    ],
)
def test_a_torch_file_without_usable_tensors_is_named(
    tmp_path: Path, content: object, word: str
) -> None:
    path = saved(tmp_path / "w.pt", content)
    with pytest.raises(DataError) as caught, weights_file.reading(path):
        pass
    assert word in caught.value.reason


@given(data=st.binary(max_size=200))
def test_any_bytes_are_tensors_or_an_error(data: bytes) -> None:
    # The reader itself: a torch file would start a process for each example.
    with suppress(DataError):
        weights_file._weights(Path("w"), memoryview(data))


def test_the_child_process_and_its_caller_have_one_exit_status() -> None:
    assert torch_file.CANNOT_READ == weights_file.CANNOT_READ


def compressed(path: Path) -> Path:
    """A torch file whose tensor of zeros is compressed."""
    plain = saved(path.with_suffix(".plain"), {"w": torch.zeros(1 << 22)})
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for part in old.infolist():
            new.writestr(part.filename, old.read(part))
    assert path.stat().st_size < 32 * 1024
    return path


def overlapping(path: Path) -> Path:
    """A torch file whose directory has a part twice."""
    saved(path, {"w": torch.zeros(1 << 12)})
    with zipfile.ZipFile(path, "a") as archive:
        largest = max(archive.filelist, key=lambda part: part.file_size)
        archive.filelist += [largest] * 3
        archive.comment = b" "  # Has the directory written again.
    return path


def expanded(path: Path) -> Path:
    return saved(path, {"w": torch.ones(1).expand(1 << 40)})


def repeated(path: Path) -> Path:
    return saved(path, {f"w{n}": torch.ones(1).expand(1 << 21) for n in range(400)})


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (compressed, r"its part '.*' is compressed, 16,777,216 bytes in "),
        (overlapping, r"its parts have [\d,]+ bytes, and the file "),
        (
            expanded,
            r"'w' of shape \[1099511627776\] would have 4,398,046,511,104 bytes, and the file ",
        ),
        (repeated, r"up to 'w\d+' would have [\d,]+ bytes, more than [\d,]+ \(32 times the file\)"),
    ],
)
def test_a_small_file_does_not_become_a_large_one(
    tmp_path: Path, made: Callable[[Path], Path], text: str
) -> None:
    """By the archive's directory and the tensors' shapes, before their elements are read."""
    path = made(tmp_path / "w.pt")
    with pytest.raises(DataError, match=text) as caught, weights_file.reading(path):
        pass
    assert caught.value.path == str(path)


def test_weights_tied_many_times_and_a_small_expanded_buffer_are_no_small_file(
    tmp_path: Path,
) -> None:
    layer, mask = torch.rand(300, 300), torch.ones(1, 1, 8, 8).expand(64, 4, 8, 8)
    path = saved(tmp_path / "w.pt", {"mask": mask} | {f"layers.{n}.w": layer for n in range(24)})
    found = widened(path)
    assert len(found) == 25
    assert found["mask"].shape == (64, 4, 8, 8)
