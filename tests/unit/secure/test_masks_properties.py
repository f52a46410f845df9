"""Masks cancel: for any cohort, graph and drop-outs with enough holders, the unmasked sum is the survivors' sum."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_queue.errors import MessageError
from fl_queue.protocol import crypto
from fl_queue.secure import masks, shamir
from fl_queue.secure.graph import Graph

CONTEXT = bytes(range(32))
WORD = {32: np.uint32, 64: np.uint64}


class Cohort:
    """Clients with secrets dealt to their neighbours, a part of them out of the roster, and a part without an update."""

    def __init__(self, size: int, degree: int, seed: int) -> None:
        self.draw = np.random.default_rng(seed)
        self.clients = [f"client-{i}" for i in range(size)]
        self.graph = Graph(self.clients, degree, CONTEXT)
        self.secrets = {id_: self._secret() for id_ in self.clients}
        self.selves = {id_: self._secret() for id_ in self.clients}
        self.keys = {id_: masks.mask_key(r, CONTEXT) for id_, r in self.secrets.items()}
        self.mask_keys = {id_: crypto.public_half(key) for id_, key in self.keys.items()}

    def _secret(self) -> bytes:
        return shamir.to_bytes(int.from_bytes(self.draw.bytes(32), "little") % shamir.PRIME)

    def rebuilt(self, client: str, secret: bytes, threshold: int, alive: set[str]) -> bytes:
        """A secret from shares of holders that are alive."""
        coefficients = [shamir.from_bytes(self._secret()) for _ in range(threshold - 1)]
        polynomial = (shamir.from_bytes(secret), *coefficients)
        holders = [id_ for id_ in self.graph.holders(client) if id_ in alive]
        numbers = [self.graph.number(id_) for id_ in holders]
        shares = {number: shamir.share_of(polynomial, number) for number in numbers}
        return shamir.to_bytes(shamir.rebuild(shares, threshold))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(3, 9),
    st.booleans(),
    st.sampled_from([32, 64]),
    st.integers(0, 2**32),
    st.data(),
)
def test_masks_cancel(size: int, is_ring: bool, bits: int, seed: int, data: st.DataObject) -> None:
    cohort = Cohort(size, 4 if is_ring and size > 5 else size - 1, seed)
    roster = set(data.draw(st.lists(st.sampled_from(cohort.clients), min_size=3, unique=True)))
    survivors = set(data.draw(st.lists(st.sampled_from(sorted(roster)), min_size=2, unique=True)))
    threshold = 2
    values = {
        id_: cohort.draw.integers(0, 2**bits, 7, np.uint64).astype(WORD[bits]) for id_ in survivors
    }
    tails = {id_: cohort.draw.integers(0, 2**64, 3, np.uint64) for id_ in survivors}
    total, rest = np.zeros(7, WORD[bits]), np.zeros(3, np.uint64)
    for id_ in survivors:
        others = {v: cohort.mask_keys[v] for v in cohort.graph.neighbours(id_, roster)}
        own = masks.masks_of(id_, cohort.keys[id_], cohort.selves[id_], others, CONTEXT)
        words, tail = values[id_].copy(), tails[id_].copy()
        masks.apply(own, words, tail)
        total += words
        rest += tail

    known, gone = {}, {}
    for id_ in roster:
        secret = (cohort.selves if id_ in survivors else cohort.secrets)[id_]
        # A survivor may rebuild it alone with one more; who dropped out holds its own share as well.
        if sum(other in survivors for other in cohort.graph.holders(id_)) < threshold:
            return
        (known if id_ in survivors else gone)[id_] = cohort.rebuilt(
            id_, secret, threshold, survivors
        )
    removals = masks.Secrets(known, gone, cohort.mask_keys).removals(cohort.graph, CONTEXT)
    # In ranges of coordinates, as several processes could take the masks off.
    for start in range(0, 7, 3):
        for mask in removals:
            mask.apply_to_values(total[start : start + 3], start)
    for mask in removals:
        mask.apply_to_tail(rest)

    assert np.array_equal(total, sum(values.values(), np.zeros(7, WORD[bits])))
    assert np.array_equal(rest, sum(tails.values(), np.zeros(3, np.uint64)))


def test_masked_words_are_uniform() -> None:
    """Chi-square by byte of a masked vector of zeros; 255 degrees of freedom."""
    words, tail = np.zeros(1 << 18, np.uint32), np.zeros(1, np.uint64)
    masks.apply([masks.self_mask(bytes(32), CONTEXT, "a")], words, tail)

    counts = np.bincount(words.view(np.uint8), minlength=256)
    expected = words.nbytes / 256
    # The 1e-6 quantiles of chi-square with 255 degrees of freedom.
    assert 155 < ((counts - expected) ** 2 / expected).sum() < 376
    centred = words.astype(np.float64) - 2.0**31
    assert abs(np.corrcoef(centred[:-1], centred[1:])[0, 1]) < 0.01


def test_another_context_is_another_mask() -> None:
    other = bytes(32)

    assert masks.self_mask(bytes(32), CONTEXT, "a") != masks.self_mask(bytes(32), other, "a")
    assert masks.mask_key(bytes(32), CONTEXT) != masks.mask_key(bytes(32), other)


def test_a_neighbour_with_a_key_of_low_order_is_named() -> None:
    with pytest.raises(MessageError, match=r"bad key of hospital-b"):
        masks.pair_mask(bytes([1] * 32), bytes(32), CONTEXT, "hospital-a", "hospital-b")


def test_a_mask_secret_is_known_by_its_key() -> None:
    secret = shamir.to_bytes(7)
    public = crypto.public_half(masks.mask_key(secret, CONTEXT))

    assert masks.is_secret_of(secret, public, CONTEXT)
    assert not masks.is_secret_of(shamir.to_bytes(8), public, CONTEXT)
    assert not masks.is_secret_of(b"\xff" * 32, public, CONTEXT)
