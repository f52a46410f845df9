"""Compiled loops where there is no numba, or no folder to cache them in; shown by those of int8."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import fl_queue

QUANTISE_IN_A_PROCESS = """
import sys, logging
logging.basicConfig(level="INFO", format="%(message)s")
if "without numba" in sys.argv:
    sys.modules["numba"] = None
import hashlib
import numpy as np
from fl_queue.protocol.codecs import int8
assert "numba.core" not in sys.modules
int8.warm_up()
values = np.random.default_rng(3).standard_normal(99999).astype(np.float32)
out, back = np.zeros(int8.nbytes(values.size), np.uint8), np.zeros_like(values)
int8.quantise(values, out, 256, 77)
int8.dequantise(out, back)
print(hashlib.sha256(out.tobytes() + back.tobytes()).hexdigest(), "numba.core" in sys.modules)
"""


def in_a_process(
    *arguments: str, cwd: Path | None = None, **environment: str
) -> tuple[list[str], str]:
    done = subprocess.run(
        [sys.executable, "-c", QUANTISE_IN_A_PROCESS, *arguments],
        env=os.environ | environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return done.stdout.split(), done.stderr


def test_without_numba_the_bits_are_the_same() -> None:
    fast, _ = in_a_process()
    slow, log = in_a_process("without numba")
    assert fast[0] == slow[0]
    assert (fast[1], slow[1]) == ("True", "False")
    assert "numba cannot be imported" in log


def test_without_a_folder_to_cache_in_the_loops_are_compiled(tmp_path: Path) -> None:
    # A file in the place of every cache folder: no account can write there, root included.
    package = tmp_path / "fl_queue"
    shutil.copytree(
        Path(fl_queue.__file__).parent, package, ignore=shutil.ignore_patterns("__pyc*")
    )
    (package / "protocol/codecs/__pycache__").write_text("")
    (tmp_path / "no-folder").write_text("")
    nowhere = str(tmp_path / "no-folder")
    found, log = in_a_process(
        cwd=tmp_path, PYTHONPATH=str(tmp_path), HOME=nowhere, XDG_CACHE_HOME=nowhere
    )
    assert found == in_a_process()[0]
    assert "compiling at each start" in log
