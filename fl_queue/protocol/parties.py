"""
The parties of a federation: client -> public signing key, in a file that sites compare and pin (``--peers``).

TOML, one table for each client with its key and its fingerprint; a fingerprint that is not the key's is an error, so
that one compared by telephone stands for the key.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_queue.common import toml_text
from fl_queue.common.safe_json import dumps
from fl_queue.errors import ConfigError
from fl_queue.protocol import identifiers, signing
from fl_queue.protocol.operator_key import fingerprint

_OPTION = "--peers"
_MOST_BYTES = 16 * 1024 * 1024
_HEAD = """\
# Parties of a federation, written by `fl-queue parties`: compare each fingerprint with its party, by telephone or in
# person. Run: fl-queue worker client --peers THIS-FILE
"""


@dataclass(frozen=True)
class Parties:
    """Args: ``keys``: client -> public Ed25519 key, base64."""

    keys: Mapping[str, str]

    @property
    def digest(self) -> str:
        """SHA-256 of ids and keys, hexadecimal; the same whatever the file's layout and comments."""
        return hashlib.sha256(dumps(dict(self.keys)).encode()).hexdigest()

    def to_toml(self) -> str:
        """The content of the file."""
        tables = {
            client: {"key": key, "fingerprint": fingerprint(key)}
            for client, key in sorted(self.keys.items())
        }
        return f"{_HEAD}\n{toml_text.dumps(tables)}"


def read(path: Path) -> Parties:
    """
    Read such a file, at a site.

    Raises:
        ConfigError: It is not there, others of this machine may change it, or an entry cannot be used.
    """
    try:
        with path.open("rb") as file:
            mode, raw = os.fstat(file.fileno()).st_mode, file.read(_MOST_BYTES)
    except OSError as exc:
        raise ConfigError(_OPTION, f"{path} cannot be read: {exc.strerror or exc}") from exc
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(
            _OPTION, f"{path} can be changed by others of this machine; run chmod go-w {path}"
        )
    return parse(raw, str(path))


def parse(raw: bytes, path: str) -> Parties:
    """
    The content of such a file. Args: ``path``: its name, for errors.

    Raises:
        ConfigError: It is not TOML, or an entry cannot be used.
    """
    try:
        tables = tomllib.loads(raw.decode())
    except (ValueError, RecursionError) as exc:
        raise ConfigError(
            _OPTION, f"{path} is not valid TOML; ask for the file of `fl-queue parties` again"
        ) from exc
    return Parties({client: _key(path, client, table) for client, table in tables.items()})


def _key(path: str, client: str, table: Any) -> str:
    if not identifiers.is_name(client):
        raise ConfigError(_OPTION, f"{path}: {client[:64]!r} is not a client id")
    key = table.get("key") if isinstance(table, dict) else None
    if not isinstance(key, str) or not signing.is_key(key):
        raise ConfigError(_OPTION, f"{path}: {client} has no key; ask for its line again")
    if table.get("fingerprint", fingerprint(key)) != fingerprint(key):
        raise ConfigError(
            _OPTION,
            f"{path}: the fingerprint of {client} is not that of its key; ask {client} for both again",
        )
    return key
