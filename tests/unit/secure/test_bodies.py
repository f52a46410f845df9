"""Bodies of a secure round's elements: the layout byte by byte, and sizes that are checked."""

from __future__ import annotations

from typing import Any

import pytest

from fl_queue.errors import MessageError
from fl_queue.secure.bodies import NO_SHARE, ConfirmBody, Dealt, KeysBody, UnmaskBody, UpdateTrailer
from fl_queue.secure.shamir import from_bytes

DEALT = Dealt((bytes([1] * 48), bytes([2] * 48)), (bytes([3] * 32), bytes([4] * 32)))
KEYS = KeysBody(bytes([5] * 32), bytes([6] * 32), bytes([7] * 64), DEALT)
TRAILER = UpdateTrailer(bytes([8] * 32), "99" * 32, DEALT)
CONFIRM = ConfirmBody(bytes([10] * 64))
UNMASK = UnmaskBody((bytes([11] * 32), NO_SHARE, bytes([12] * 32)))
CASES = [(KEYS, (2,)), (TRAILER, (2,)), (CONFIRM, ()), (UNMASK, (3,))]


@pytest.mark.parametrize(("body", "counts"), CASES, ids=lambda case: type(case).__name__)
def test_a_body_is_the_same_after_its_bytes_and_has_one_size(body: Any, counts: Any) -> None:
    raw = body.to_bytes()

    assert type(body).from_bytes(memoryview(raw), *counts) == body
    for wrong in (raw[:-1], raw + b"\0", b""):
        with pytest.raises(MessageError, match="bytes, not"):
            type(body).from_bytes(wrong, *counts)


def test_the_layouts() -> None:
    dealt = b"\1" * 48 + b"\2" * 48 + b"\3" * 32 + b"\4" * 32

    assert KEYS.to_bytes() == b"\5" * 32 + b"\6" * 32 + b"\7" * 64 + dealt
    assert TRAILER.to_bytes() == b"\x08" * 32 + b"\x99" * 32 + dealt
    assert (KeysBody.nbytes(2), UpdateTrailer.nbytes(2), UnmaskBody.nbytes(3)) == (288, 224, 96)


def test_a_missing_share_is_no_element() -> None:
    with pytest.raises(MessageError):
        from_bytes(NO_SHARE)
