"""Envelopes: the same bytes each time, and nothing that was touched passes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fl_queue.errors import MessageError
from fl_queue.protocol import message, signing
from fl_queue.protocol.header import Header

SECRET = "nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A="
#: Of RFC 8032, test 1: the public key that belongs to it.
PUBLIC = "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="
ELEMENT = message.pack(Header(kind="failure", run="r", round=1, client="a", token="t"), None)


def test_the_key_pair_is_that_of_the_standard() -> None:
    sealed = signing.opened(signing.seal(ELEMENT, "a", SECRET))

    assert sealed is not None
    assert (sealed.signer, bytes(sealed.element)) == ("a", ELEMENT)
    assert signing.is_signed_by(sealed, PUBLIC)
    assert signing.seal(ELEMENT, "a", SECRET) == signing.seal(ELEMENT, "a", SECRET)


def test_no_bit_of_signer_signature_or_header_can_be_changed() -> None:
    whole = signing.seal(ELEMENT, "a", SECRET)
    for place in range(len(signing.SEALED), len(whole)):
        for bit in (1, 128):
            touched = bytearray(whole)
            touched[place] ^= bit
            try:
                sealed = signing.opened(touched)
            except MessageError:
                continue
            assert sealed is not None
            assert not signing.is_signed_by(sealed, PUBLIC)


def test_the_body_is_signed_by_its_digest() -> None:
    sealed = signing.opened(signing.seal(ELEMENT, "a", SECRET) + b"body")

    assert sealed is not None
    assert signing.is_signed_by(
        sealed, PUBLIC
    )  # unpack() refuses it, and check_body() another one.
    with pytest.raises(MessageError, match="4 bytes follow the header"):
        message.unpack(sealed.element, max_body_bytes=10)


@pytest.mark.parametrize("size", range(4, 4 + 1 + 1 + 64))
def test_a_cut_envelope_is_refused(size: int) -> None:
    with pytest.raises(MessageError, match="cut off"):
        signing.opened(signing.seal(ELEMENT, "a", SECRET)[:size])


def test_a_signer_is_a_client_id() -> None:
    with pytest.raises(MessageError, match="no client can have"):
        signing.opened(signing.seal(ELEMENT, "a/b", SECRET))


def test_what_is_no_envelope_is_left_alone() -> None:
    for element in (b"", b"FLQ", ELEMENT):
        assert signing.opened(element) is None


@pytest.mark.parametrize("text", ["", "x", "AAAA", "ü", PUBLIC[:-4], PUBLIC + "AAAA"])
def test_what_is_no_key_is_known(text: str) -> None:
    assert not signing.is_key(text)
    sealed = signing.opened(signing.seal(ELEMENT, "a", SECRET))
    assert sealed is not None
    assert not signing.is_signed_by(sealed, text)


def test_signing_is_loaded_on_request_of_a_worker_and_no_sooner() -> None:
    code = (
        "import sys; from fl_queue.protocol import signing; before = 'cryptography' in sys.modules;"
        "signing.preload(); loaded = set(sys.modules); signing.new_key();"
        "print(before, [name for name in set(sys.modules) - loaded if 'cryptography' in name])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "False []\n"
