"""Tokens of the page: generated, or read from a private file."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from fl_queue.common import files
from fl_queue.errors import ConfigError

#: A shorter token could be guessed.
SHORTEST = 20
_LONGEST = 1000


def made() -> str:
    """Make a random token of 256 bits."""
    return secrets.token_urlsafe(32)


def read(option: str, path: Path) -> str:
    """
    Read a token file.

    Args:
        option: The option that names it, for the error.

    Raises:
        ConfigError: It cannot be read, other users can read it, or it has no token.
    """
    try:
        with path.open("rb") as file:
            _refuse_shared(option, path, os.fstat(file.fileno()))
            text = file.read(_LONGEST + 1).decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(option, f"{path} cannot be read as a token: {exc}") from exc
    return checked(option, text)


def checked(option: str, text: str) -> str:
    """Check a token. Raises ConfigError, which does not contain the token."""
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ConfigError(option, "the token is not of ASCII letters, digits and signs alone")
    if not SHORTEST <= len(text) <= _LONGEST:
        reason = (
            f"the token has {len(text)} characters, needed are {SHORTEST} or more; make one with"
        )
        raise ConfigError(option, f"{reason} `openssl rand -hex 32`")
    return text


def _refuse_shared(option: str, path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError(option, f"{path} is no file")
    if found.st_uid not in (0, os.geteuid()):
        raise ConfigError(option, f"{path} is another user's; name a file of your own")
    # systemd's credentials are root's, and let their reader in by the group's bits.
    shared = files.PRIVATE_UMASK if found.st_uid == os.geteuid() else 0o037
    if stat.S_IMODE(found.st_mode) & shared:
        mode = stat.S_IMODE(found.st_mode)
        reason = f"{path} can be used by other users (mode {mode:04o}); `chmod 600 {path}`"
        raise ConfigError(option, reason)
