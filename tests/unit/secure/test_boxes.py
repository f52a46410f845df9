"""Boxes: each opens for its reader under its name only, and no two keys are equal."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from fl_queue.errors import MessageError
from fl_queue.protocol import crypto
from fl_queue.secure import boxes
from fl_queue.secure.boxes import Box

CONTEXT = bytes(range(32))
SHARED = bytes([7] * 32)
SHARE = bytes([5] * 32)
BOX = Box(CONTEXT, "self", "a", "b", boxes.bound_to_self(bytes(32), "1" * 64))


def test_a_box_opens_under_its_own_name_only() -> None:
    sealed = BOX.seal(SHARED, SHARE)
    assert len(sealed) == boxes.BOX_BYTES
    assert BOX.open(SHARED, sealed) == SHARE
    others = [
        replace(BOX, context=bytes(32)),
        replace(BOX, kind="key"),
        replace(BOX, dealer="c"),
        replace(BOX, reader="c"),
        replace(BOX, dealer="b", reader="a"),
        replace(BOX, bound=boxes.bound_to_self(bytes(32), "2" * 64)),
        replace(BOX, bound=boxes.bound_to_self(bytes([1] * 32), "1" * 64)),
    ]
    for other in others:
        with pytest.raises(MessageError, match="bad box of"):
            other.open(SHARED, sealed)
    with pytest.raises(MessageError, match="bad box of a for b"):
        BOX.open(bytes(32), sealed)


def test_a_shortened_or_longer_box_is_a_documented_error() -> None:
    sealed = BOX.seal(SHARED, SHARE)
    short = BOX.seal(SHARED, SHARE[:31])

    for wrong in (b"", sealed[:-1], sealed + b"\0", sealed[:16], short):
        with pytest.raises(MessageError):
            BOX.open(SHARED, wrong)


def test_no_two_boxes_have_one_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nonce 0 is safe as long as a key seals one message: over 10,000 boxes of rounds, readers, kinds and dealings."""
    keys: list[bytes] = []
    sealed = crypto.seal

    def noting(key: bytes, content: bytes, associated: bytes) -> bytes:
        keys.append(key)
        return sealed(key, content, associated)

    monkeypatch.setattr(crypto, "seal", noting)
    shared = {pair: bytes([*pair, *bytes(30)]) for pair in product(range(5), range(5))}
    for round_number, (one, other), dealing in product(range(20), shared, range(10)):
        context = round_number.to_bytes(32, "little")
        mask_key, commitment = (bytes([kind, dealing, *bytes(30)]) for kind in (1, 2))
        first = Box(context, "key", f"c{one}", f"c{other}", boxes.bound_to_key(mask_key))
        first.seal(shared[one, other], SHARE)
        bound = boxes.bound_to_self(commitment, "1" * 64)
        replace(first, kind="self", bound=bound).seal(shared[one, other], SHARE)

    assert len(keys) == len(set(keys)) == 10_000


def test_a_share_hash_names_everything_but_what_the_box_is_bound_to() -> None:
    found = {
        box.share_hash(share)
        for box in (
            BOX,
            replace(BOX, kind="key"),
            replace(BOX, dealer="c"),
            replace(BOX, reader="c"),
        )
        for share in (SHARE, bytes(32))
    }

    assert len(found) == 8
    assert replace(BOX, bound=b"").share_hash(SHARE) == BOX.share_hash(SHARE)
