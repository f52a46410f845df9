"""
Primitives of secure sums: X25519, HKDF-SHA256, the AES-256-CTR stream and ChaCha20-Poly1305.

Beside ``signing`` the only user of ``cryptography``. Keys and outputs are raw bytes; everything that is made
from the same inputs is the same bytes on every machine.

Source:
    RFC 7748 (X25519), RFC 5869 (HKDF), RFC 8439 (ChaCha20-Poly1305), NIST SP 800-38A (counter mode).
"""

from __future__ import annotations

from collections.abc import Iterator

from fl_queue.errors import MessageError

KEY_BYTES = 32
#: What ``seal`` adds to its content.
TAG_BYTES = 16
_BLOCK_BYTES = 16
#: Keystream bytes made at a time, so that they are still in an L2 cache when they are used.
_STRIDE = 1 << 18
_ZEROS = bytes(_STRIDE)
#: The key of a box seals one message only.
_NONCE = bytes(12)


def new_exchange_key() -> tuple[bytes, bytes]:
    """A new X25519 key pair: (secret, public), 32 bytes each."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    key = X25519PrivateKey.generate()
    return key.private_bytes_raw(), key.public_key().public_bytes_raw()


def public_half(secret: bytes) -> bytes:
    """The public X25519 key that belongs to a secret one of 32 bytes."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def exchange(secret: bytes, public: bytes) -> bytes:
    """
    The X25519 secret of two parties, 32 bytes.

    Args:
        secret: Own key, 32 bytes.
        public: The other's, of any origin.

    Raises:
        MessageError: The public key is none, or of low order: the result would be all zero.
    """
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

    own = X25519PrivateKey.from_private_bytes(secret)
    try:
        return own.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise MessageError("not an X25519 key, or one of low order") from None


def derive(material: bytes, salt: bytes, info: bytes, nbytes: int = KEY_BYTES) -> bytes:
    """Key material by HKDF-SHA256 (extract with ``salt``, expand with ``info``)."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(hashes.SHA256(), nbytes, salt, info).derive(material)


def keystream(key: bytes, start: int, nbytes: int) -> Iterator[memoryview]:
    """
    Bytes ``start`` to ``start + nbytes`` of the AES-256-CTR stream of a key, whose first counter block is 0.

    Args:
        key: 32 bytes; a key has one stream.

    Yields:
        The bytes in order, at most 256 KiB at a time; each piece is overwritten by the next one.
    """
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    first, skipped = divmod(start, _BLOCK_BYTES)
    counter = first.to_bytes(_BLOCK_BYTES, "big")
    cipher = Cipher(algorithms.AES(key), modes.CTR(counter)).encryptor()
    cipher.update(bytes(skipped))
    # update_into wants room for one block more than it writes.
    piece = memoryview(bytearray(min(nbytes, _STRIDE) + _BLOCK_BYTES))
    for at in range(0, nbytes, _STRIDE):
        size = min(_STRIDE, nbytes - at)
        cipher.update_into(memoryview(_ZEROS)[:size], piece)
        yield piece[:size]


def seal(key: bytes, content: bytes, associated: bytes, nonce: bytes = _NONCE) -> bytes:
    """
    ChaCha20-Poly1305 of some bytes, 16 longer than they are.

    Args:
        key: 32 bytes. With the nonce left at 0 it seals one message, and no other ever.
        associated: Authenticated with the content, and not in the result.
    """
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    return ChaCha20Poly1305(key).encrypt(nonce, content, associated)


def unseal(key: bytes, sealed: bytes, associated: bytes, nonce: bytes = _NONCE) -> bytes:
    """
    The content of ``seal``. Args: as there.

    Raises:
        MessageError: Key, content or associated bytes are not those that were sealed.
    """
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    try:
        return ChaCha20Poly1305(key).decrypt(nonce, sealed, associated)
    except (InvalidTag, ValueError):
        raise MessageError("a box does not open") from None
