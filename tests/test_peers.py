"""What ``benchmarks.peers`` computes itself; Flower is not needed."""

from __future__ import annotations

import socket
import subprocess
import tomllib
from pathlib import Path

import numpy as np
import pytest

from benchmarks import peers
from fl_queue.idx import encode_idx


def test_ports_are_different_and_free() -> None:
    ports = peers.free_ports(5)

    assert len(set(ports)) == 5
    for port in ports:
        with socket.socket() as each:
            each.bind(("127.0.0.1", port))


def test_app_config_is_toml_that_says_the_same() -> None:
    values: dict[str, peers.Value] = {
        "task": "constant",
        "clients": 4,
        "result": "/a \\ \"b'\n",
        "timeout": 2.5,
    }

    parsed = tomllib.loads(peers.PROJECT + peers.app_config(values))

    assert parsed["tool"]["flwr"]["app"]["config"] == values


def test_connection_is_toml_that_names_the_port() -> None:
    parsed = tomllib.loads(peers.CONNECTION.format(port=1234))

    assert parsed["superlink"]["here"] == {"address": "127.0.0.1:1234", "insecure": True}


def test_periods_leave_the_first_round_out_and_end_with_the_last_one() -> None:
    assert peers.periods([0.0, 10.0, 11.0, 13.0]) == [1.0, 2.0]


def test_below_finds_grandchildren() -> None:
    with subprocess.Popen(
        ["sh", "-c", "sh -c 'echo $$; read line; :'; :"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        grandchild = int(process.stdout.readline())

        assert grandchild in peers.below(process.pid)

        process.communicate(b"\n", timeout=10)


@pytest.mark.parametrize("given", [True, False])
def test_images_are_flat_bytes(tmp_path: Path, given: bool) -> None:
    images = np.arange(2 * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(2, 28, 28)
    if given:
        (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(encode_idx(images))
        (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(encode_idx(np.uint8([3, 7])))

    peers.write_images(str(tmp_path) if given else "", tmp_path / "images.npz")

    with np.load(tmp_path / "images.npz") as found:
        assert found["images"].dtype == found["labels"].dtype == np.uint8
        if given:
            assert found["images"].tolist() == images.reshape(2, 784).tolist()
            assert found["labels"].tolist() == [3, 7]
        else:
            assert found["images"].shape == (60_000, 784)
            assert set(found["labels"]) == set(range(10))
