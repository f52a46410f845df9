"""Files with one secret Ed25519 key, for their owner alone: that of the operator, and that of a site."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from fl_queue.common import files
from fl_queue.errors import ConfigError
from fl_queue.protocol import signing

#: A key file is a few lines; no more is read of whatever lies there.
_MOST_BYTES = 4096


def read(path: Path, option: str, no_key: str) -> str:
    """
    The secret key of a file, base64.

    Args:
        option: Name of the option, for errors.
        no_key: The end of the error of a file without a key.

    Raises:
        ConfigError: It cannot be read, is readable by others, or holds no key.
    """
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            text = file.read(_MOST_BYTES).decode("ascii", errors="replace")
    except OSError as exc:
        raise ConfigError(
            option, f"{path} cannot be read: {exc.strerror or exc}; name the key's file"
        ) from exc
    if stat.S_ISREG(found.st_mode) and found.st_mode & files.PRIVATE_UMASK:
        raise ConfigError(option, f"{path} is open to others of this machine; run chmod 600 {path}")
    lines = [line.strip() for line in text.splitlines()]
    secrets = [line for line in lines if line and not line.startswith("#")]
    if len(secrets) != 1 or not signing.is_key(secrets[0]):
        raise ConfigError(option, f"{path} {no_key}")
    return secrets[0]


def create(path: Path, head: str) -> str:
    """
    Make a key, for its owner alone, on disk when this returns.

    Args:
        head: Comment lines above it.

    Returns:
        The secret key, base64.

    Raises:
        FileExistsError: The name is taken; the file is unchanged.
        OSError: It cannot be written.
    """
    secret, _ = signing.new_key()
    files.create_private(path, f"{head}{secret}\n".encode())
    return secret
