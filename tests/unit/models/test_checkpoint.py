"""Checkpoints: write-once, verified, atomic, and write errors of the disk."""

from __future__ import annotations

import os
import resource
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fl_queue.errors import CheckpointError, MessageError
from fl_queue.models import checkpoint
from fl_queue.protocol import tensor_layout
from fl_queue.protocol.manifest import Manifest, TensorSpec

MANIFEST = Manifest(
    (
        TensorSpec("a.weight", (3, 1), "parameter"),
        TensorSpec("count", (), "integer_buffer"),
        TensorSpec("empty", (0, 2), "parameter"),
        TensorSpec("mean", (2,), "float_buffer"),
    ),
    aliases={"tied.weight": "a.weight"},
)
TENSORS = {
    "a.weight": np.array([[1.5], [-2.0], [np.nan]], np.float32),
    "count": np.array(7, np.int64),
    "empty": np.zeros((0, 2), np.float32),
    "mean": np.array([0.25, -0.0], np.float32),
}
BODY = tensor_layout.encode_body(MANIFEST, TENSORS)
DIGEST = tensor_layout.body_digest(BODY)


def write(folder: Path) -> Path:
    return checkpoint.write(folder, DIGEST, MANIFEST, BODY, {"run": "demo-3f2a9c"})


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path: Path) -> None:
    path = write(tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / f"{DIGEST}.safetensors"
    assert checkpoint.read(path.parent, DIGEST, MANIFEST) == BODY
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_checkpoint_is_a_plain_safetensors_file(tmp_path: Path) -> None:
    found = load_file(write(tmp_path))
    assert {name: tensor.tobytes() for name, tensor in found.items()} == {
        name: tensor.tobytes() for name, tensor in TENSORS.items()
    }


def test_a_checkpoint_is_its_owners_alone(tmp_path: Path) -> None:
    assert stat.S_IMODE(write(tmp_path).stat().st_mode) == 0o600


def test_a_complete_checkpoint_is_not_written_again(tmp_path: Path) -> None:
    before = write(tmp_path).stat()
    after = write(tmp_path).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


@pytest.mark.parametrize("kept", [0, 5, 40, -1])
def test_a_cut_checkpoint_is_refused_and_then_written_again(tmp_path: Path, kept: int) -> None:
    path = write(tmp_path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError) as caught:
        checkpoint.read(tmp_path, DIGEST, MANIFEST)
    assert caught.value.path == str(path)
    write(tmp_path)
    assert checkpoint.read(tmp_path, DIGEST, MANIFEST) == BODY


def test_a_changed_byte_is_found_by_the_digest(tmp_path: Path) -> None:
    path = write(tmp_path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.read(tmp_path, DIGEST, MANIFEST)
    assert "damaged" in caught.value.reason


@pytest.mark.parametrize(
    "tensors",
    [
        {name: TENSORS[name] for name in ("a.weight", "count")},
        TENSORS | {"more": np.zeros(1, np.float32)},
        TENSORS | {"mean": np.zeros(2, np.float64)},
        TENSORS | {"mean": np.zeros((2, 1), np.float32)},
    ],
)
def test_a_file_of_another_model_is_refused(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    save_file(tensors, tmp_path / f"{DIGEST}.safetensors")
    with pytest.raises(CheckpointError) as caught:
        checkpoint.read(tmp_path, DIGEST, MANIFEST)
    assert DIGEST in caught.value.path


def test_a_missing_checkpoint_is_reported_as_missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        checkpoint.read(tmp_path, DIGEST, MANIFEST)
    assert caught.value.reason == "is missing"


def test_a_digest_that_is_a_path_names_no_file(tmp_path: Path) -> None:
    for act in (
        lambda: checkpoint.read(tmp_path, "../../etc/passwd", MANIFEST),
        lambda: checkpoint.write(tmp_path, "x/../../y", MANIFEST, BODY, {}),
    ):
        with pytest.raises(CheckpointError, match="is not a digest"):
            act()


def test_a_body_of_another_size_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(MessageError, match="27 bytes"):
        checkpoint.write(tmp_path, DIGEST, MANIFEST, BODY[:-1], {})
    assert list(tmp_path.iterdir()) == []


WRITE_WITH_LITTLE_ROOM = """
import resource, sys
from pathlib import Path
from fl_queue.errors import CheckpointError
from fl_queue.models import checkpoint
from fl_queue.protocol import tensor_layout
from fl_queue.protocol.manifest import Manifest, TensorSpec
manifest = Manifest((TensorSpec("w", (250_000,), "parameter"),))
body = bytes(manifest.nbytes)
resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
folder = Path(sys.argv[1])
def export():
    checkpoint.export(body, manifest, folder / "old.safetensors", {})
def write():
    checkpoint.write(folder, tensor_layout.body_digest(body), manifest, body, {})
for act in (write, export):
    try:
        act()
    except CheckpointError as exc:
        print(exc)
"""


def test_a_full_disk_is_a_checkpoint_error_and_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "old.safetensors").write_text("the old file")
    done = subprocess.run(
        [sys.executable, "-c", WRITE_WITH_LITTLE_ROOM, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert str(tmp_path) in line
        assert "File too large" in line
        assert "free space" in line
    assert [file.name for file in tmp_path.iterdir()] == ["old.safetensors"]
    assert (tmp_path / "old.safetensors").read_text() == "the old file"


def test_a_folder_that_cannot_be_made_is_a_checkpoint_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError) as caught:
        write(tmp_path / "file" / "folder")
    assert str(tmp_path) in caught.value.path
    assert "Not a directory" in caught.value.reason


def test_export_writes_aliases_out(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_text("an older export")
    checkpoint.export(BODY, MANIFEST, path, {"version": "3"})
    found = load_file(path)
    assert sorted(found) == ["a.weight", "count", "empty", "mean", "tied.weight"]
    assert found["tied.weight"].tobytes() == TENSORS["a.weight"].tobytes()
    assert found["tied.weight"].shape == (3, 1)
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def test_export_does_not_replace_a_device_or_a_folder(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path):
        with pytest.raises(CheckpointError, match="is not a file"):
            checkpoint.export(BODY, MANIFEST, path, {})
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_export_into_a_missing_folder_names_the_path(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        checkpoint.export(BODY, MANIFEST, tmp_path / "no" / "m.safetensors", {})
    assert caught.value.path.endswith("no/m.safetensors")


def test_prune_keeps_the_given_digests_and_foreign_files(tmp_path: Path) -> None:
    for digest in ("a" * 64, "b" * 64, "c" * 64):
        (tmp_path / f"{digest}.safetensors").write_text("")
    (tmp_path / "mine.safetensors").write_text("")
    (tmp_path / "notes.txt").write_text("")
    checkpoint.prune(tmp_path, {"b" * 64})
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == ["b" * 64 + ".safetensors", "mine.safetensors", "notes.txt"]
    checkpoint.prune(tmp_path / "missing", set())


def test_prune_sweeps_what_killed_writers_left_and_spares_a_living_one(tmp_path: Path) -> None:
    for name, age_s in (("killed", 7200), ("living", 10)):
        left = tmp_path / f".writing-{name}"
        left.mkdir()
        (left / "half.safetensors").write_text("")
        os.utime(left, (time.time() - age_s,) * 2)
    checkpoint.prune(tmp_path, set())
    assert [file.name for file in tmp_path.iterdir()] == [".writing-living"]


def test_writing_makes_no_copy_of_the_model(tmp_path: Path) -> None:
    manifest = Manifest((TensorSpec("w", (16_000_000,), "parameter"),))
    body = bytearray(manifest.nbytes)
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    checkpoint.write(tmp_path, tensor_layout.body_digest(body), manifest, body, {})
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib
    assert grown_kib * 1024 < manifest.nbytes / 4
