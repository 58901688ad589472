"""Shamir's secret sharing of 32 bytes over the integers modulo PRIME (Shamir 1979, Communications of the ACM 22, 612-613).

A secret is the value at 0 of a polynomial of degree threshold - 1; the share of index x is its value at x. Any `threshold`
shares give the secret, fewer say nothing about it. The arithmetic is not constant in time: a secret lives for one round, on its
owner's machine.
"""

import functools
from collections.abc import Callable, Iterable, Mapping

PRIME = 2**256 + 297  # the least prime above 2^256, so that every secret of 32 bytes is a number below it
SECRET_BYTES = 32
SHARE_BYTES = 33  # big-endian


def split(
    secret: bytes, threshold: int, indices: Iterable[int], random_below: Callable[[int], int]
) -> dict[int, bytes]:
    """Returns the share of each index, 33 bytes big-endian.

    secret: 32 bytes. indices: from 1 on, distinct, at least `threshold` of them.
    random_below: gives an unpredictable number in 0 .. limit - 1, as secrets.randbelow does; it is called threshold - 1 times.
    Raises ValueError for arguments that share nothing.
    """
    points = list(indices)
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a secret has {SECRET_BYTES} bytes, not {len(secret)}")
    if not 2 <= threshold <= len(points) or min(points) < 1 or len(set(points)) != len(points):
        raise ValueError(f"{threshold} of the shares {points} cannot be dealt")
    coefficients = [int.from_bytes(secret, "big"), *(random_below(PRIME) for _ in range(threshold - 1))]
    return {point: _value_at(coefficients, point).to_bytes(SHARE_BYTES, "big") for point in points}


def _value_at(coefficients: list[int], point: int) -> int:
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * point + coefficient) % PRIME
    return value


def is_share(value: bytes) -> bool:
    """Returns whether bytes can be a share: 33 bytes, big-endian, below PRIME."""
    return len(value) == SHARE_BYTES and int.from_bytes(value, "big") < PRIME


def combine(shares: Mapping[int, bytes]) -> bytes:
    """Returns the secret, 32 bytes, from exactly as many shares as the threshold.

    shares: by index. Raises ValueError if they give no secret of 32 bytes, or if one of them is no share.
    """
    if not shares or not all(is_share(value) for value in shares.values()):
        raise ValueError("a share is not a number below the prime")
    indices = tuple(sorted(shares))
    weights = _weights_at_zero(indices)
    total = sum(weight * int.from_bytes(shares[index], "big") for index, weight in zip(indices, weights, strict=True))
    secret = total % PRIME
    if secret >= 1 << (8 * SECRET_BYTES):
        raise ValueError("the shares give no secret of 32 bytes")
    return secret.to_bytes(SECRET_BYTES, "big")


@functools.lru_cache(maxsize=16)  # the same holders reveal the secrets of all dealers
def _weights_at_zero(indices: tuple[int, ...]) -> tuple[int, ...]:
    """Returns Lagrange's weights, by which the values at the indices give the value at 0."""
    weights = []
    for index in indices:
        above, below = 1, 1
        for other in indices:
            if other != index:
                above = above * other % PRIME
                below = below * (other - index) % PRIME
        weights.append(above * pow(below, -1, PRIME) % PRIME)
    return tuple(weights)
