"""Compiled loops where there is no numba, or no folder to cache them in; shown by those of int8."""

from __future__ import annotations

import shutil
from pathlib import Path

import fl_queue
from tests.support.python_process import words_of

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


def test_without_numba_the_bits_are_the_same() -> None:
    fast, _ = words_of(QUANTISE_IN_A_PROCESS)
    slow, log = words_of(QUANTISE_IN_A_PROCESS, "without numba")
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
    found, log = words_of(
        QUANTISE_IN_A_PROCESS,
        cwd=tmp_path,
        PYTHONPATH=str(tmp_path),
        HOME=nowhere,
        XDG_CACHE_HOME=nowhere,
    )
    assert found == words_of(QUANTISE_IN_A_PROCESS)[0]
    assert "compiling at each start" in log
