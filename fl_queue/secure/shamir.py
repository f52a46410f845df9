"""
Shamir's secret sharing over the integers modulo 2**255 - 19.

A secret is the constant term of a random polynomial, a share its value at a holder's number. Any
``threshold`` shares give the secret, and fewer fit every secret alike. Python integers; not constant-time, as the
secrets serve one round and no other process can time them.

Source:
    Shamir 1979, "How to share a secret".
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence

from fl_queue.errors import MessageError

PRIME = 2**255 - 19
ELEMENT_BYTES = 32


def random_element() -> int:
    """A secret or a coefficient: uniform in [0, 2**255 - 19), from the system's generator."""
    while True:
        value = int.from_bytes(secrets.token_bytes(ELEMENT_BYTES), "little") & (2**255 - 1)
        if value < PRIME:
            return value


def to_bytes(element: int) -> bytes:
    """An element as 32 bytes, little-endian."""
    return element.to_bytes(ELEMENT_BYTES, "little")


def from_bytes(raw: bytes) -> int:
    """
    An element of 32 bytes from another process.

    Raises:
        MessageError: It has another size, or is 2**255 - 19 or more.
    """
    value = int.from_bytes(raw, "little")
    if len(raw) != ELEMENT_BYTES or value >= PRIME:
        raise MessageError("not an element of the field of shares")
    return value


def random_polynomial(secret: int, threshold: int) -> tuple[int, ...]:
    """Coefficients of a polynomial, the secret first, of which ``threshold`` values give all."""
    return (secret, *(random_element() for _ in range(threshold - 1)))


def share_of(polynomial: Sequence[int], holder: int, prime: int = PRIME) -> int:
    """
    A holder's share: the polynomial's value at its number.

    Args:
        polynomial: Coefficients, the secret first.
        holder: From 1 on; 0 would be the secret itself.
    """
    value = 0
    for coefficient in reversed(polynomial):
        value = (value * holder + coefficient) % prime
    return value


def coefficients(holders: Sequence[int], prime: int = PRIME) -> tuple[int, ...]:
    """
    Lagrange's coefficients at 0, in the holders' order: once for each set of holders.

    Args:
        holders: Different numbers from 1 on.
    """
    found = []
    for own in holders:
        over, under = 1, 1
        for other in holders:
            if other != own:
                over = over * other % prime
                under = under * (other - own) % prime
        found.append(over * pow(under, -1, prime) % prime)
    return tuple(found)


def combine(shares: Sequence[int], lagrange: Sequence[int], prime: int = PRIME) -> int:
    """The secret of as many shares as the threshold. Args: ``lagrange``: ``coefficients`` of their holders."""
    return sum(share * factor for share, factor in zip(shares, lagrange, strict=True)) % prime


def rebuild(shares: Mapping[int, int], threshold: int) -> int:
    """
    The secret of shares by holder's number, from the ``threshold`` lowest of them.

    Raises:
        ValueError: There are fewer than ``threshold``.
    """
    holders = sorted(shares)[:threshold]
    if len(holders) < threshold:
        raise ValueError(f"{len(holders)} shares, {threshold} are needed")
    return combine([shares[holder] for holder in holders], coefficients(holders))
