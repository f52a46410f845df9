"""
The one file that a site is handed: who it is, where Redis is, and the secrets it needs for both.

TOML, readable by its owner alone. ``fl-queue enroll`` writes it; a worker is given its path, and each
of its processes reads it, so that no secret is in an argument or in the environment.
"""

from __future__ import annotations

import os
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from fl_queue.common import files, redis_url, state_folder, toml_text
from fl_queue.errors import ConfigError
from fl_queue.protocol import identifiers, signing
from fl_queue.store.acl import Purpose

#: Part of the certificates table -> redis-py's option that names a file of it.
_TLS = {"ca": "ssl_ca_certs", "certificate": "ssl_certfile", "key": "ssl_keyfile"}
_HEAD = """\
# Credentials of {client} for fl-queue, written by `fl-queue enroll`. A process with this file acts as {client}.
# Run: fl-queue worker {command} --credentials THIS-FILE{key}
"""


@dataclass(frozen=True)
class Login:
    """A Redis user: its name and password."""

    name: str
    password: str = field(repr=False)


@dataclass(frozen=True)
class Credentials:
    """
    Contents of a credentials file.

    Args:
        client: Client id, or ``evaluator``.
        signing_key: Its secret Ed25519 key, base64; empty where the site made its own.
        url, blob_url: Both Redis roles as the site reaches them, without passwords.
        users: Purpose -> login; ``all`` where one user does everything; empty: no login.
        tls: ``ca``: the certificate that signed the servers'; ``certificate`` and ``key``: what the
            site shows them (mutual TLS). PEM text.
        operator_key: Public half of the operator's key, base64: what the operator signs is checked with
            it; empty in a file that was written before there was one.
        public_key: Public half of a key that the site made, base64; empty where ``signing_key`` is here.
    """

    client: str
    signing_key: str = field(repr=False)
    url: str
    blob_url: str
    users: Mapping[str, Login] = field(default_factory=dict)
    tls: Mapping[str, str] = field(default_factory=dict, repr=False)
    operator_key: str = ""
    public_key: str = ""

    def to_toml(self) -> str:
        """The content of the credentials file."""
        command = self.client if self.client == identifiers.EVALUATOR else "client"
        tables: dict[str, Any] = {"client": self.client}
        own = {"signing_key": self.signing_key, "public_key": self.public_key}
        tables |= {name: key for name, key in own.items() if key}
        if self.operator_key:
            tables["operator_key"] = self.operator_key
        tables["redis"] = {"url": self.url, "blob_url": self.blob_url}
        if self.users:
            tables["redis"]["users"] = {
                purpose: {"name": login.name, "password": login.password}
                for purpose, login in self.users.items()
            }
        if self.tls:
            tables["tls"] = {part: f"{pem.strip()}\n" for part, pem in self.tls.items()}
        head = _HEAD.format(
            client=self.client, command=command, key="" if self.signing_key else " --key KEY-FILE"
        )
        return f"{head}\n{toml_text.dumps(tables, multiline=True)}"

    def urls(self) -> tuple[str, str]:
        """
        (url, blob_url) for connections of this process, with login and certificates.

        Raises:
            ConfigError: It has users, but none for what is the client's own.
        """
        login = self.users.get("all") or self.users.get("own") or Login("", "")
        if self.users and not login.name:
            raise ConfigError("redis.users", "has no user `all` or `own`; enrol the client anew")
        return self._urls_as(login)

    def other_users(self) -> dict[Purpose, tuple[str, str]]:
        """Purpose -> the URLs as the user for it, of a client that is several; see ``acl``."""
        further: tuple[Purpose, ...] = ("read", "push")
        return {
            purpose: self._urls_as(self.users[purpose])
            for purpose in further
            if purpose in self.users
        }

    def _urls_as(self, login: Login) -> tuple[str, str]:
        def whole(url: str) -> str:
            options = self._options() if redis_url.is_tls(url) else {}
            return redis_url.with_login(url, login.name, login.password, options)

        return whole(self.url), whole(self.blob_url)

    def _options(self) -> dict[str, str]:
        return {_TLS[part]: _as_file(pem) for part, pem in self.tls.items()}


@cache
def _as_file(text: str) -> str:
    """A path under which this process finds a text: Python's TLS takes keys from files only."""
    descriptor = os.memfd_create("fl-queue")
    os.write(descriptor, text.encode())
    return f"/proc/self/fd/{descriptor}"


def write(path: Path, credentials: Credentials, force: bool = False) -> None:
    """
    Write the file for its owner alone.

    Args:
        force: Whether one that is there may be replaced.

    Raises:
        ConfigError: There is one, or it cannot be written.
    """
    check_place(path, force)
    try:
        with files.write_atomically(path) as file:
            file.write(credentials.to_toml().encode())
    except OSError as exc:
        raise ConfigError("--output", f"{path} cannot be written: {exc.strerror or exc}") from exc


def check_place(path: Path, force: bool) -> None:
    """
    See that credentials may be written to a file.

    Raises:
        ConfigError: There is one, or others of this machine could exchange it: for their Redis, and their key.
    """
    if path.exists() and not force:
        raise ConfigError(
            "--output", f"{path} is there; name another file, or replace it with --force"
        )
    if state_folder.may_be_exchanged(path.absolute().parent):
        raise ConfigError(
            "--output",
            f"others of this machine may write to {path.absolute().parent}, and put another file in the place of "
            "this one; name a file in a folder of your own, or run chmod go-w on that folder",
        )


def read(path: Path) -> Credentials:
    """
    Read such a file.

    Raises:
        ConfigError: It is not there, others may read it, or a field of it cannot be used.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            raw = tomllib.loads(file.read().decode())
    except OSError as exc:
        raise _bad(f"{path} cannot be read: {exc.strerror or exc}") from exc
    except ValueError as exc:
        # The parser's message may quote what it read.
        raise _bad(f"{path} is not valid TOML; write it anew with `fl-queue enroll`") from exc
    if mode & (stat.S_IRWXO if _is_handed_by_systemd(path) else files.PRIVATE_UMASK):
        raise _bad(f"{path} is open to others of this machine; run chmod 600 {path}")
    return _parsed(path, raw)


def _is_handed_by_systemd(path: Path) -> bool:
    """
    Whether it is a copy that systemd made for this service alone (``LoadCredential=``).

    It gives the service's account a right of its own (an ACL), which looks like one of root's group.
    """
    folder = os.environ.get("CREDENTIALS_DIRECTORY", "")
    return bool(folder) and path.absolute().parent == Path(folder) and path.stat().st_gid == 0


def _parsed(path: Path, raw: Mapping[str, Any]) -> Credentials:
    try:
        users = {
            purpose: Login(_text(login["name"]), _text(login["password"]))
            for purpose, login in raw["redis"].get("users", {}).items()
        }
        tls = {part: _text(raw["tls"][part]) for part in _TLS if part in raw.get("tls", {})}
        made = Credentials(
            _text(raw["client"]),
            _text(raw.get("signing_key", "") if "public_key" in raw else raw["signing_key"]),
            _text(raw["redis"]["url"]),
            _text(raw["redis"]["blob_url"]),
            users,
            tls,
            _text(raw.get("operator_key", "")),
            _text(raw.get("public_key", "")),
        )
    except (KeyError, TypeError, AttributeError) as exc:
        raise _bad(f"{path} lacks a field; write it anew with `fl-queue enroll`") from exc
    if not is_enrollable(made.client):
        raise _bad(f"{path}: {made.client!r} is not a client id")
    for name in ("signing_key", "public_key", "operator_key"):
        key = getattr(made, name)
        if (key or name in raw) and not signing.is_key(key):
            raise _bad(f"{path}: {name} is not a key; write it anew with `fl-queue enroll`")
    if made.signing_key and made.public_key:
        raise _bad(f"{path}: signing_key and public_key exclude each other; leave public_key out")
    return made


def is_enrollable(client: str) -> bool:
    """Whether a name is valid for an enrolment: that of a client, or of the evaluator."""
    return identifiers.is_name(client) and (
        client == identifiers.EVALUATOR or client not in identifiers.RESERVED
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _bad(reason: str) -> ConfigError:
    return ConfigError("--credentials", reason)
