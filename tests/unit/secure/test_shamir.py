"""Shares: any threshold of them gives the secret, and fewer fit every secret."""

from __future__ import annotations

from itertools import combinations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_queue.errors import MessageError
from fl_queue.secure import shamir

#: Five bits: small enough to try every polynomial.
SMALL = 31


@given(st.integers(0, shamir.PRIME - 1), st.integers(1, 6), st.data())
def test_any_threshold_of_shares_gives_the_secret(
    secret: int, threshold: int, data: st.DataObject
) -> None:
    polynomial = shamir.random_polynomial(secret, threshold)
    holders = data.draw(st.lists(st.integers(1, 12), min_size=threshold, unique=True))
    shares = {holder: shamir.share_of(polynomial, holder) for holder in holders}

    assert shamir.rebuild(shares, threshold) == secret


@pytest.mark.parametrize("threshold", [1, 2, 3])
def test_over_a_small_prime_fewer_shares_fit_every_secret_equally(threshold: int) -> None:
    holders = range(1, 5)
    seen: dict[tuple[tuple[int, ...], tuple[int, ...]], dict[int, int]] = {}
    for polynomial in product(range(SMALL), repeat=threshold):
        values = [shamir.share_of(polynomial, holder, SMALL) for holder in holders]
        for some in combinations(holders, threshold):
            shares = [values[holder - 1] for holder in some]
            factors = shamir.coefficients(some, SMALL)
            assert shamir.combine(shares, factors, SMALL) == polynomial[0]
        for some in combinations(holders, threshold - 1):
            key = some, tuple(values[holder - 1] for holder in some)
            counts = seen.setdefault(key, {})
            counts[polynomial[0]] = counts.get(polynomial[0], 0) + 1

    assert all(counts == dict.fromkeys(range(SMALL), 1) for counts in seen.values())


def test_too_few_shares_are_refused() -> None:
    with pytest.raises(ValueError, match="2 shares, 3 are needed"):
        shamir.rebuild({1: 5, 2: 7}, 3)


@pytest.mark.parametrize(
    "raw", [b"", bytes(31), bytes(33), b"\xff" * 32, (2**255 - 19).to_bytes(32, "little")]
)
def test_bytes_that_are_no_element_are_a_documented_error(raw: bytes) -> None:
    with pytest.raises(MessageError):
        shamir.from_bytes(raw)


def test_elements_are_drawn_from_the_whole_field() -> None:
    drawn = [shamir.random_element() for _ in range(300)]

    assert len(set(drawn)) == 300
    assert all(shamir.from_bytes(shamir.to_bytes(value)) == value for value in drawn)
    assert min(drawn) < shamir.PRIME // 8
    assert max(drawn) > shamir.PRIME * 7 // 8
