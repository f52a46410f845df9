"""What was measured on: the machine, the versions, the commit."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.harness.federation import ROOT
from benchmarks.harness.table import markdown
from fl_queue.store.embedded import server_binary

PACKAGES = ("redis", "hiredis", "rq", "torch", "numpy", "numba")


def table() -> str:
    """A Markdown table."""
    rows = [
        ["processor", _field("/proc/cpuinfo", "model name")],
        ["cores", str(len(os.sched_getaffinity(0)))],
        ["memory", f"{int(_field('/proc/meminfo', 'MemTotal').split()[0]) / 2**20:.1f} GiB"],
        ["system", platform.platform()],
        ["python", platform.python_version()],
        ["redis-server", _said(str(server_binary.find_server()), "--version")],
        *[[name, _version(name)] for name in PACKAGES],
        ["commit", _commit()],
        ["day", time.strftime("%Y-%m-%d")],
    ]
    return markdown(("", ""), rows)


def _field(file: str, name: str) -> str:
    """Value of the first line of that name in a file of ``name: value`` lines."""
    for line in Path(file).read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return "0 unknown"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    """The commit that is checked out, and whether the files are its."""
    changed = _said("git", "status", "--porcelain", "--untracked-files=no", "fl_queue", "workers")
    return _said("git", "rev-parse", "--short", "HEAD") + (" with changes" if changed else "")


def _said(*command: str) -> str:
    """The first line a command prints; ``unknown`` when it cannot be asked."""
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.partition("\n")[0]
