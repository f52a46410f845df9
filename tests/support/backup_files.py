"""Backup files with other contents, for tests of their reader."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any


def rewrite_backup(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change ``run.json`` of a backup in place; bytes that ``change`` returns replace it."""
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    raw = json.loads(entries["run.json"])
    text = change(raw)
    entries["run.json"] = text if isinstance(text, bytes) else json.dumps(raw).encode()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def without_entries(file: Path, names: Collection[str]) -> None:
    """Remove entries of a backup in place."""
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    assert set(names) <= set(entries)
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in entries.items():
            if name not in names:
                archive.writestr(name, content)
