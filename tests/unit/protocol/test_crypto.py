"""Primitives: the vectors of the standards; what does not agree or open is a documented error."""

from __future__ import annotations

import pytest

from fl_queue.errors import MessageError
from fl_queue.protocol import crypto

h = bytes.fromhex


def test_x25519_has_the_vector_of_the_standard() -> None:
    # RFC 7748, 6.1.
    alice = h("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
    bob = h("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    shared = h("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")

    assert crypto.public_half(alice).hex().startswith("8520f0098930a754748b7ddcb43ef75a")
    assert crypto.exchange(alice, crypto.public_half(bob)) == shared
    assert crypto.exchange(bob, crypto.public_half(alice)) == shared


def test_hkdf_has_the_vector_of_the_standard() -> None:
    # RFC 5869, A.1.
    found = crypto.derive(
        h("0b" * 22), h("000102030405060708090a0b0c"), h("f0f1f2f3f4f5f6f7f8f9"), 42
    )

    assert found == h(
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    )


def test_the_stream_has_the_vector_of_the_standard() -> None:
    # NIST SP 800-38A, F.5.5; the stream of our keys begins at counter 0, so this one is far into it.
    key = h("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    counter = int("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff", 16)
    plain = h("6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51")
    sealed = h("601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5")

    stream = b"".join(map(bytes, crypto.keystream(key, 16 * counter, 32)))

    assert bytes(a ^ b for a, b in zip(stream, plain, strict=True)) == sealed


def test_a_box_has_the_vector_of_the_standard() -> None:
    # RFC 8439, 2.8.2.
    key, nonce, associated = (
        bytes(range(0x80, 0xA0)), h("070000004041424344454647"), h("50515253c0c1c2c3c4c5c6c7"),
    )  # fmt: skip
    content = (
        b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future,"
        b" sunscreen would be it."
    )
    sealed = crypto.seal(key, content, associated, nonce)

    assert sealed[:32] == h("d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d6")
    assert sealed[-18:] == h("61161ae10b594f09e26a7e902ecbd0600691")
    assert crypto.unseal(key, sealed, associated, nonce) == content


@pytest.mark.parametrize(
    ("start", "size"), [(0, 5), (3, 40), (16, 16), (1 << 18, 100), (7, (1 << 19) + 9)]
)
def test_any_range_of_a_stream_is_a_part_of_it(start: int, size: int) -> None:
    key = bytes(32)
    whole = b"".join(map(bytes, crypto.keystream(key, 0, start + size)))

    assert b"".join(map(bytes, crypto.keystream(key, start, size))) == whole[start:]


@pytest.mark.parametrize("public", [bytes(32), b"\1" + bytes(31), bytes(31), b""])
def test_a_key_of_low_order_or_none_is_a_documented_error(public: bytes) -> None:
    secret, _ = crypto.new_exchange_key()

    with pytest.raises(MessageError, match="X25519"):
        crypto.exchange(secret, public)


def test_what_was_touched_does_not_open() -> None:
    sealed = crypto.seal(bytes(32), b"share", b"context")

    for place in range(len(sealed)):
        touched = sealed[:place] + bytes([sealed[place] ^ 1]) + sealed[place + 1 :]
        with pytest.raises(MessageError):
            crypto.unseal(bytes(32), touched, b"context")
    for cut in (b"", sealed[:-1], sealed[:15]):
        with pytest.raises(MessageError):
            crypto.unseal(bytes(32), cut, b"context")
    with pytest.raises(MessageError):
        crypto.unseal(bytes(32), sealed, b"other")
