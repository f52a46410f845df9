"""Literal values of three clients' keys, masks, shares and boxes: another implementation makes the same bytes."""

from __future__ import annotations

import numpy as np

from fl_queue.protocol import crypto
from fl_queue.secure import boxes, masks, shamir
from fl_queue.secure.boxes import Box
from fl_queue.secure.graph import Graph
from tests.support import secure_vectors as vectors
from tests.support.secure_vectors import CLIENTS, CONTEXT, KEYS, MASK_KEYS, RUN_KEYS

SENT = {
    "a": ([1, -2, 3, 0, 1048576], [5, 600]),
    "b": ([10, 20, -30, 40, -50], [1, -1]),
    "c": ([-7, 7, -7, 7, -7], [1099511627776, 300]),
}
MASKED = {
    "a": ([84076277, 3769234431, 2493719347, 2365645633, 2312525612], [15079248113964804964, 11683899095306518511]),
    "b": ([1989668996, 2488811989, 3810222203, 61757514, 3386703641], [7481290271144772990, 3898807505071861357]),
    "c": ([1635030846, 3407792606, 1488724025, 2854606584, 687682120], [15887686480555166627, 13605540112391000145]),
}  # fmt: skip


def masked(client: str) -> tuple[np.ndarray, np.ndarray]:
    values, tail = (np.array(part, np.int64) for part in SENT[client])
    words, rest = values.astype(np.uint32), tail.astype(np.uint64)
    others = {other: MASK_KEYS[other] for other in CLIENTS if other != client}
    secret = vectors.SELF_SECRETS[client]
    masks.apply(masks.masks_of(client, KEYS[client], secret, others, CONTEXT), words, rest)
    return words, rest


def test_the_context() -> None:
    assert CONTEXT.hex() == "681b7ea13a7e2bf57a1513c356bc790a03f7c1caaa690f3e23edd643aea53bfd"


def test_the_keys() -> None:
    assert RUN_KEYS["a"].hex() == "81cbb2f7fe7ec8699d370359eb4bfc9b40f71a9887bd627c8acc6abd9eb87b5f"
    assert (
        MASK_KEYS["a"].hex() == "34822a267497fba1de4350e985dec234a7304946e7b61439f09cd8c7dd17d409"
    )
    assert (
        MASK_KEYS["b"].hex() == "3e096e5bca83c0b33e8b67ef112ccb87ddd8a59bf511c1a63b84b49c7187083b"
    )
    pair = masks.pair_mask(KEYS["a"], MASK_KEYS["b"], CONTEXT, "a", "b")
    assert pair.values.hex() == "2a12f48fd68da57d89b2f6ba328589a7d48d2a8e9c4783ecd6db10397bcdecd0"
    assert pair.sign == 1
    assert masks.pair_mask(KEYS["b"], MASK_KEYS["a"], CONTEXT, "b", "a") == pair.negated()
    own = masks.self_mask(vectors.SELF_SECRETS["a"], CONTEXT, "a")
    assert own.values.hex() == "7705a32a431e559b2d5a49360a6b6885c09a11dc16884ed26e6bafd989d096ec"


def test_the_streams() -> None:
    pair = masks.pair_mask(KEYS["a"], MASK_KEYS["b"], CONTEXT, "a", "b")
    values, tail = np.zeros(5, np.uint32), np.zeros(2, np.uint64)
    masks.apply([pair], values, tail)

    assert values.tolist() == [3116203766, 704047258, 4180830090, 1631002814, 1895422369]
    assert tail.tolist() == [16441903656791516306, 5374490404791235100]


def test_the_masked_vectors_and_their_sum() -> None:
    found = {client: masked(client) for client in CLIENTS}
    assert {client: (v.tolist(), t.tolist()) for client, (v, t) in found.items()} == MASKED

    values = sum((v for v, _ in found.values()), np.zeros(5, np.uint32))
    tail = sum((t for _, t in found.values()), np.zeros(2, np.uint64))
    secrets = masks.Secrets(vectors.SELF_SECRETS, {}, MASK_KEYS)
    masks.apply(secrets.removals(Graph(CLIENTS, 2, CONTEXT), CONTEXT), values, tail)

    assert values.astype(np.int32).tolist() == [4, 25, -34, 47, 1048519]
    assert tail.astype(np.int64).tolist() == [1099511627782, 899]


def test_the_sum_without_the_one_who_dropped_out() -> None:
    values, tail = (x + y for x, y in zip(masked("a"), masked("b"), strict=True))
    secrets = masks.Secrets(
        {client: vectors.SELF_SECRETS[client] for client in "ab"},
        {"c": vectors.MASK_SECRETS["c"]},
        MASK_KEYS,
    )
    masks.apply(secrets.removals(Graph(CLIENTS, 2, CONTEXT), CONTEXT), values, tail)

    assert values.astype(np.int32).tolist() == [11, 18, -27, 40, 1048526]
    assert tail.astype(np.int64).tolist() == [6, 599]


def test_the_shares() -> None:
    polynomial = (vectors.number("mask seed a"), vectors.number("coefficient a 1"))
    found = [shamir.to_bytes(shamir.share_of(polynomial, holder)).hex() for holder in (0, 1, 2)]

    assert found == [
        "de2928db0b6e6ca69d2cc5df3529d19a425d775e8316f7745e2852f2d8ec2b7d",
        "90df9a3d9a66b44a37c899b9bb8ba1876ce690d94163aa14e73db992b18f6f2e",
        "2f950da0285ffceed0636e9341ee7174966faa5400b05db46f5320338a32b35f",
    ]


def test_the_boxes() -> None:
    shared = crypto.exchange(vectors.RUN_SECRETS["a"], RUN_KEYS["b"])
    assert shared == crypto.exchange(vectors.RUN_SECRETS["b"], RUN_KEYS["a"])
    share = bytes.fromhex("2f950da0285ffceed0636e9341ee7174966faa5400b05db46f5320338a32b35f")
    box = Box(CONTEXT, "key", "a", "b", boxes.bound_to_key(MASK_KEYS["a"]))

    assert box.seal(shared, share).hex() == (
        "12dc02984ccfac64e99257c41d4d205782cd4dfec9e53e9d5ef41c17c0fa1df955285cc4a0cc0366b0539f54631ed144"
    )
    assert box.share_hash(share).hex() == (
        "4853392d9277e18d2af211255c2e9fb6c168d265fff872b51a169fcf7f8e3afb"
    )


def test_the_boxes_of_a_self_secret() -> None:
    shared = crypto.exchange(vectors.RUN_SECRETS["a"], RUN_KEYS["b"])
    polynomial = (vectors.number("self seed a"), vectors.number("self coefficient a 1"))
    share = shamir.to_bytes(shamir.share_of(polynomial, 2))
    commitment = boxes.commitment(CONTEXT, "a", vectors.SELF_SECRETS["a"])
    box = Box(CONTEXT, "self", "a", "b", boxes.bound_to_self(commitment, vectors.ROSTER))

    assert share.hex() == "7a1899d7ec8952df1936d6a0a8c0df96788f036d626498caa907c62291e3ef50"
    assert commitment.hex() == "c6d301a6626c05f6c06e9dd3cea551005ee784377bc47e56de9eafaf9bc044a1"
    assert box.seal(shared, share).hex() == (
        "b897e84a0cc6b22f8d6f63a49d106861351ceda54ffe1577cf86ed1c7966d91b58662f4a81938eb0f7754fdac59f7ca4"
    )
