"""The smallest limit of memory counts: of the machine, of a cgroup, of one above it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fl_queue.common.memory import usable_bytes

MACHINE = "MemTotal:       4096 kB\nMemFree: 1 kB\n"


def made(folder: Path, files: dict[str, str]) -> int:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return usable_bytes(folder / "cgroup", folder / "own", folder / "meminfo")


@pytest.mark.parametrize(
    ("files", "nbytes"),
    [
        ({"meminfo": MACHINE}, 4096 * 1024),
        ({"meminfo": MACHINE, "own": "0::/\n", "cgroup/memory.max": "max\n"}, 4096 * 1024),
        ({"meminfo": MACHINE, "own": "0::/\n", "cgroup/memory.max": "1000\n"}, 1000),
        ({"meminfo": MACHINE, "own": "0::/a/b\n", "cgroup/a/b/memory.max": "2000\n"}, 2000),
        (
            {"own": "0::/a/b\n", "cgroup/a/b/memory.max": "2000\n", "cgroup/a/memory.max": "500\n"},
            500,
        ),
        # In a container the path may be the host's.
        ({"own": "0::/docker/1\n", "cgroup/memory.max": "700\n"}, 700),
        (
            {"own": "3:cpu,memory:/x\n", "cgroup/memory/x/memory.limit_in_bytes": "300\n"},
            300,
        ),
        ({"own": "3:cpu:/x\n", "cgroup/memory/x/memory.limit_in_bytes": "300\n"}, 0),
        ({}, 0),
        ({"meminfo": "nothing\n"}, 0),
    ],
)
def test_the_smallest_limit_counts(tmp_path: Path, files: dict[str, str], nbytes: int) -> None:
    assert made(tmp_path, files) == nbytes


def test_this_process_has_some() -> None:
    assert usable_bytes() > 1 << 20
