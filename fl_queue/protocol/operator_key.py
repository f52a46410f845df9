"""
The operator's Ed25519 key: signs what the operator's side decides, in a file on the operator's disk.

``fl-queue enroll`` makes it. The processes of the operator's side (``start-round``, aggregator, healer)
sign with it; a site checks with the public half, which stands in its credentials file. Each signature
is for one purpose: one made for an enrolment does not pass for a run's config.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fl_queue.errors import ConfigError
from fl_queue.protocol import key_file, signing

#: Its name in the state folder of the operator's machine.
FILE = "operator.key"
#: Names another file, for commands and workers alike.
VARIABLE = "FLQ_OPERATOR_KEY"
_OPTION = "--operator-key"
_HEAD = (
    "# The operator's secret key of fl-queue (Ed25519). It signs as the operator:\n"
    "# keep a copy that no other account can read, and give it to the operator's machines alone.\n"
)
_FINGERPRINT_DIGITS = 32


@dataclass(frozen=True)
class OperatorKey:
    """
    The whole key.

    Args:
        secret: Base64 of its 32 bytes.
        public: Base64 of the public half.
    """

    secret: str = field(repr=False)
    public: str

    @property
    def fingerprint(self) -> str:
        """A short name of the key, to compare by eye."""
        return fingerprint(self.public)

    def sign(self, purpose: str, content: bytes) -> str:
        """
        The signature of some bytes, base64; the same each time.

        Args:
            purpose: What the signature is for, such as ``enrolment v1``; ``verify`` needs the same.
        """
        return signing.sign(self.secret, _whole(purpose, content))


def verify(public: str, purpose: str, content: bytes, signature: str) -> bool:
    """Whether ``sign`` made a signature of these bytes for this purpose. Args: ``public``: base64."""
    return signing.is_signature(public, _whole(purpose, content), signature)


def fingerprint(public: str) -> str:
    """
    A short name of a public key, to compare by eye: 32 hexadecimal digits of its SHA-256.

    Args:
        public: Base64, of the operator or of a client.
    """
    try:
        raw = base64.b64decode(public, validate=True)
    except ValueError:
        raw = public.encode()
    return hashlib.sha256(raw).hexdigest()[:_FINGERPRINT_DIGITS]


def place(
    state_dir: Path, named: Path | None = None, environ: Mapping[str, str] = os.environ
) -> Path:
    """Path of the key. Args: ``named``: the option; else the variable names it, else the state folder has it."""
    given = named or (Path(environ[VARIABLE]) if environ.get(VARIABLE) else None)
    return given or state_dir / FILE


def find(
    state_dir: Path, named: Path | None = None, environ: Mapping[str, str] = os.environ
) -> OperatorKey | None:
    """
    The key of this machine; None when it has none.

    Raises:
        ConfigError: It cannot be used, or the file that was named is not there.
    """
    path = place(state_dir, named, environ)
    if path == state_dir / FILE and not os.path.lexists(path):
        return None
    return load(path)


def load(path: Path) -> OperatorKey:
    """
    Read a key file.

    Raises:
        ConfigError: It cannot be read, is readable by others, or holds no key.
    """
    secret = key_file.read(
        path,
        _OPTION,
        "holds no operator's key; put back a copy of it (a new one takes enrolling every site anew)",
    )
    return OperatorKey(secret, signing.public_half(secret))


def create(path: Path) -> OperatorKey:
    """
    Make a key, for its owner alone; one that is there stays, and is returned.

    Raises:
        ConfigError: It cannot be written, or what is there cannot be used.
    """
    try:
        secret = key_file.create(path, _HEAD)
    except FileExistsError:
        return load(path)
    except OSError as exc:
        raise ConfigError(_OPTION, f"{path} cannot be written: {exc.strerror or exc}") from exc
    return OperatorKey(secret, signing.public_half(secret))


def _whole(purpose: str, content: bytes) -> bytes:
    # A zero byte ends the purpose: no purpose can contain one, so none is the beginning of another.
    if "\0" in purpose:
        raise ValueError("a purpose has no zero byte")
    return b"".join((b"fl-queue operator v1\0", purpose.encode(), b"\0", content))
