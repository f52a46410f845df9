"""The task that the README shows trains: its class and its config, as they stand there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np

README = (Path(__file__).parents[2] / "README.md").read_text()


def block(name: str) -> str:
    """The block of code that begins with the comment of that file name."""
    found = re.search(rf"^```\w+\n(# {re.escape(name)}\n.*?)^```", README, re.DOTALL | re.MULTILINE)
    assert found, name
    return found[1]


def test_the_task_of_the_readme_trains(tmp_path: Path) -> None:
    for name in ("beans.py", "beans.toml"):
        (tmp_path / name).write_text(block(name))
    rows = np.random.default_rng(0)
    np.save(
        tmp_path / "beans.npy", np.c_[rows.normal(size=(200, 7)), rows.integers(0, 3, size=200)]
    )
    command = next(line for line in README.splitlines() if line.startswith("fl-queue try-task"))
    words = command.replace("/data", str(tmp_path)).split()[1:]
    done = subprocess.run(
        [sys.executable, "-m", "fl_queue", *words], cwd=tmp_path, capture_output=True, text=True
    )

    assert done.returncode == 0, done.stderr
    assert "update       1,420 bytes" in done.stdout
