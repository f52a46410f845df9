"""
Ed25519 signatures of elements, outside of what they sign. The only user of ``cryptography``.

A signed element is an envelope around an element as ``blob.py`` makes it:

    b"FLQS" | signer bytes, u8 | signer | signature, 64 bytes | element

What is signed is a fixed text, the signer, and the element's prefix and header. The header names run,
round, client, base version and token, and the body's digest; the body itself needs no signature. The
envelope names the signer so that nothing of a forged element is parsed. Signing the same bytes again
gives the same signature (RFC 8032), so an update that is pushed again is the same element.
"""

from __future__ import annotations

import base64
import binascii
import importlib
from typing import NamedTuple

from fl_queue import names
from fl_queue.errors import BlobError

SEALED = b"FLQS"
#: Signatures for another purpose begin with another text, and never pass for these.
_PURPOSE = b"fl-queue update v1\0"
_SIGNATURE_BYTES = 64
_KEY_BYTES = 32
#: Of an element: its prefix, whose last four bytes tell the size of the header after it.
_PREFIX_BYTES = 12


class Sealed(NamedTuple):
    """An envelope taken apart, nothing in it checked: who is said to have signed which element."""

    signer: str
    signature: bytes
    element: memoryview


def preload() -> None:
    """Load what signs and verifies, in a worker whose forked jobs would do it one by one."""
    importlib.import_module("cryptography.hazmat.primitives.asymmetric.ed25519")


def new_key() -> tuple[str, str]:
    """A new key pair: (secret, public), both as text."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes_raw()
    return _text(key.private_bytes_raw()), _text(public)


def is_key(text: str) -> bool:
    """Whether a text can be a key, secret or public."""
    return _raw(text) is not None


def seal(element: bytes, signer: str, secret: str) -> bytes:
    """
    The element in an envelope signed with a secret key; the same bytes each time.

    Raises:
        ValueError: The secret is no key.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    raw = _raw(secret)
    if raw is None:
        raise ValueError("not an Ed25519 key")
    signature = Ed25519PrivateKey.from_private_bytes(raw).sign(_signed(signer, element))
    name = signer.encode()
    return b"".join((SEALED, bytes([len(name)]), name, signature, element))


def opened(element: bytes | memoryview) -> Sealed | None:
    """
    Take an envelope apart; None when it is none.

    Raises:
        BlobError: It is cut off, or its signer has no name that a client can have.
    """
    whole = memoryview(element).toreadonly()
    if bytes(whole[: len(SEALED)]) != SEALED:
        return None
    start = len(SEALED) + 1
    size = whole[start - 1] if len(whole) >= start else 0
    end = start + size + _SIGNATURE_BYTES
    if len(whole) < end:
        raise BlobError("signed element is cut off")
    signer = bytes(whole[start : start + size]).decode(errors="replace")
    if not names.is_name(signer):
        raise BlobError("signed by a name that no client can have")
    return Sealed(signer, bytes(whole[start + size : end]), whole[end:])


def is_signed_by(sealed: Sealed, public: str) -> bool:
    """Whether an envelope carries the signature of its signer, whose public key this is."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    raw = _raw(public)
    if raw is None:
        return False
    try:
        key = Ed25519PublicKey.from_public_bytes(raw)
        key.verify(sealed.signature, _signed(sealed.signer, sealed.element))
    except (InvalidSignature, ValueError):
        return False
    return True


def _signed(signer: str, element: bytes | memoryview) -> bytes:
    whole = memoryview(element)
    header_bytes = int.from_bytes(whole[_PREFIX_BYTES - 4 : _PREFIX_BYTES], "little")
    return b"".join((_PURPOSE, signer.encode(), b"\0", whole[: _PREFIX_BYTES + header_bytes]))


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _raw(text: str) -> bytes | None:
    try:
        raw = base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        return None
    return raw if len(raw) == _KEY_BYTES else None
