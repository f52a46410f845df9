"""What ``benchmarks.cases.flower_comparison`` computes itself; Flower is not needed."""

from __future__ import annotations

import socket
import subprocess
import tomllib
from pathlib import Path

import numpy as np

from benchmarks.cases import flower_comparison
from fl_queue.data.idx import encode_idx, read_idx


def test_ports_are_different_and_free() -> None:
    ports = flower_comparison.free_ports(5)

    assert len(set(ports)) == 5
    for port in ports:
        with socket.socket() as each:
            each.bind(("127.0.0.1", port))


def test_app_config_is_equivalent_toml() -> None:
    values: dict[str, flower_comparison.Value] = {
        "task": "constant",
        "clients": 4,
        "result": "/a \\ \"b'\n",
        "timeout": 2.5,
    }

    parsed = tomllib.loads(flower_comparison.PROJECT + flower_comparison.app_config(values))

    assert parsed["tool"]["flwr"]["app"]["config"] == values


def test_connection_is_toml_that_names_the_port() -> None:
    parsed = tomllib.loads(flower_comparison.CONNECTION.format(port=1234))

    assert parsed["superlink"]["here"] == {"address": "127.0.0.1:1234", "insecure": True}


def test_periods_leave_the_first_round_out_and_end_with_the_last_one() -> None:
    assert flower_comparison.periods([0.0, 10.0, 11.0, 13.0]) == [1.0, 2.0]


def test_below_finds_grandchildren() -> None:
    # The colons keep each shell from becoming the one it starts.
    script = """sh -c 'sh -c "echo \\$\\$; read line; :"; :'; :"""
    with subprocess.Popen(
        ["sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        grandchild = int(process.stdout.readline())

        found = flower_comparison.below(process.pid)

        process.communicate(b"\n", timeout=10)
    assert len(found) == 2
    assert found[1] == grandchild


def test_images_are_packed_flat(tmp_path: Path) -> None:
    images = np.arange(2 * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(2, 28, 28)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(encode_idx(images))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(encode_idx(np.uint8([3, 7])))

    flower_comparison.pack_images(tmp_path, tmp_path / "images.npz")

    with np.load(tmp_path / "images.npz") as found:
        assert found["images"].tolist() == images.reshape(2, 784).tolist()
        assert found["labels"].tolist() == [3, 7]


def test_random_files_have_the_shapes_of_mnist(tmp_path: Path) -> None:
    flower_comparison.write_random(tmp_path)

    for part, count in (("train", 60_000), ("t10k", 10_000)):
        images = read_idx(tmp_path / f"{part}-images-idx3-ubyte.gz", 3)
        labels = read_idx(tmp_path / f"{part}-labels-idx1-ubyte.gz", 1)
        assert images.shape == (count, 28, 28)
        assert labels.shape == (count,)
        assert set(labels) == set(range(10))
