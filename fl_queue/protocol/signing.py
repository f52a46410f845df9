"""
Ed25519 signatures: of elements, outside of what they sign, and of plain bytes. The only user of ``cryptography``.

A signed element is an envelope around an element as ``protocol/message.py`` makes it:

    b"FLQS" | signer bytes, u8 | signer | signature, 64 bytes | element

What is signed is a fixed text, the signer, and the element's prefix and header. The header names run,
round, client, base version and token, and the body's digest; the body itself needs no signature. The
envelope names the signer so that nothing of a forged element is parsed. Signing the same bytes again
gives the same signature (RFC 8032), so an update that is pushed again is the same element.
"""

from __future__ import annotations

import base64
import binascii
from typing import NamedTuple

from fl_queue.errors import MessageError
from fl_queue.protocol import identifiers

SEALED = b"FLQS"
#: Signatures for another purpose begin with another text, and never pass for these.
_PURPOSE = b"fl-queue update v1\0"
_SIGNATURE_BYTES = 64
_KEY_BYTES = 32
#: Of an element: its prefix, whose last four bytes are the size of the header after it.
_PREFIX_BYTES = 12


class SignedMessage(NamedTuple):
    """An envelope taken apart, nothing in it checked: the claimed signer and the element."""

    signer: str
    signature: bytes
    element: memoryview


def preload() -> None:
    """Load what signs and verifies, in a worker whose forked jobs would do it one by one."""
    # Older releases load the most of it at the first key.
    new_key()


def new_key() -> tuple[str, str]:
    """A new key pair: (secret, public), both as text."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes_raw()
    return _text(key.private_bytes_raw()), _text(public)


def is_key(text: str) -> bool:
    """Whether a text can be a key, secret or public."""
    return _raw(text) is not None


def public_half(secret: str) -> str:
    """
    The public key that belongs to a secret one.

    Raises:
        ValueError: The secret is no key.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.from_private_bytes(_secret(secret))
    return _text(key.public_key().public_bytes_raw())


def sign(secret: str, content: bytes) -> str:
    """
    The signature of some bytes, base64; the same each time.

    Args:
        content: Begins with what it is for, so that it never passes for something else.

    Raises:
        ValueError: The secret is no key.
    """
    return _text(raw_signature(secret, content))


def raw_signature(secret: str, content: bytes) -> bytes:
    """The same as 64 bytes. Args: as of ``sign``. Raises ValueError when the secret is no key."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(_secret(secret)).sign(content)


def is_raw_signature(public: str, content: bytes, signature: bytes) -> bool:
    """Whether ``raw_signature`` made 64 bytes, with the secret key that belongs to a public one."""
    return _verified(public, signature, content)


def is_signature(public: str, content: bytes, signature: str) -> bool:
    """Whether ``sign`` made a signature, with the secret key that belongs to a public one."""
    try:
        raw = base64.b64decode(signature, validate=True)
    except (ValueError, binascii.Error):
        return False
    return _verified(public, raw, content)


def seal(element: bytes, signer: str, secret: str) -> bytes:
    """
    The element in an envelope signed with a secret key; the same bytes each time.

    Raises:
        ValueError: The secret is no key.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.from_private_bytes(_secret(secret))
    signature = key.sign(_signed(signer, element))
    name = signer.encode()
    return b"".join((SEALED, bytes([len(name)]), name, signature, element))


def opened(element: bytes | memoryview) -> SignedMessage | None:
    """
    Take an envelope apart; None when it is none.

    Raises:
        MessageError: It is cut off, or its signer has no name that a client can have.
    """
    whole = memoryview(element).toreadonly()
    if bytes(whole[: len(SEALED)]) != SEALED:
        return None
    start = len(SEALED) + 1
    size = whole[start - 1] if len(whole) >= start else 0
    end = start + size + _SIGNATURE_BYTES
    if len(whole) < end:
        raise MessageError("signed element is cut off")
    signer = bytes(whole[start : start + size]).decode(errors="replace")
    if not identifiers.is_name(signer):
        raise MessageError("signed by a name that no client can have")
    return SignedMessage(signer, bytes(whole[start + size : end]), whole[end:])


def head_of(sealed: SignedMessage) -> bytes:
    """An envelope and the header of its element, without the body: all that the signature is about."""
    name = sealed.signer.encode()
    header = sealed.element[: _head_bytes(sealed.element)]
    return b"".join((SEALED, bytes([len(name)]), name, sealed.signature, header))


def is_signed_by(sealed: SignedMessage, public: str) -> bool:
    """Whether an envelope carries the signature of its signer, whose public key this is."""
    return _verified(public, sealed.signature, _signed(sealed.signer, sealed.element))


def _verified(public: str, signature: bytes, content: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    raw = _raw(public)
    if raw is None:
        return False
    try:
        key = Ed25519PublicKey.from_public_bytes(raw)
        key.verify(signature, content)
    except (InvalidSignature, ValueError):
        return False
    return True


def _signed(signer: str, element: bytes | memoryview) -> bytes:
    whole = memoryview(element)
    return b"".join((_PURPOSE, signer.encode(), b"\0", whole[: _head_bytes(whole)]))


def _head_bytes(element: memoryview) -> int:
    """Bytes of an element's prefix and header."""
    return _PREFIX_BYTES + int.from_bytes(element[_PREFIX_BYTES - 4 : _PREFIX_BYTES], "little")


def _secret(text: str) -> bytes:
    raw = _raw(text)
    if raw is None:
        raise ValueError("not an Ed25519 key")
    return raw


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _raw(text: str) -> bytes | None:
    try:
        raw = base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        return None
    return raw if len(raw) == _KEY_BYTES else None
