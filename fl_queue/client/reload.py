"""
A site's wish for fresh training processes, as when its data have changed in a way that is not noticed.

    <state dir>/sites/<client>/reload    a random text, new with each wish

A training process that was there before it ends, and the next job reads the data again. Nothing here needs Redis.
"""

from __future__ import annotations

import secrets
from pathlib import Path

from fl_queue.common import files
from fl_queue.common.paths import below

_FILE = "reload"


def path(state_dir: Path, client: str) -> Path:
    """The file of a client's wish."""
    return below(state_dir / "sites", client) / _FILE


def wish(state_dir: Path, client: str) -> None:
    """
    Have a client's next job start in a fresh training process.

    Raises:
        LocalStorageError: The file cannot be written.
    """
    files.write_private(path(state_dir, client), secrets.token_hex(16).encode())
