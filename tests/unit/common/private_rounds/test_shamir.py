"""Shares of a secret: as many as the threshold give it, fewer fit every secret."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.private_members import digest, numbers

from pluralllm.common.private_rounds.shamir import PRIME, combine, is_share, split


def test_the_prime_is_the_least_above_two_to_the_256() -> None:
    def is_prime(number: int) -> bool:  # Miller-Rabin with fixed bases; a composite passes for none but made-up numbers
        odd, twos = number - 1, 0
        while odd % 2 == 0:
            odd, twos = odd // 2, twos + 1
        return all(
            pow(base, odd, number) == 1 or any(pow(base, odd << i, number) == number - 1 for i in range(twos))
            for base in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)
        )

    assert [number for number in range(2**256 + 1, PRIME + 1, 2) if is_prime(number)] == [PRIME]


@settings(max_examples=25, deadline=None)
@given(st.binary(min_size=32, max_size=32), st.integers(2, 7), st.integers(0, 5), st.randoms(use_true_random=False))
def test_any_shares_as_many_as_the_threshold_give_the_secret(
    secret: bytes, threshold: int, extra: int, random: object
) -> None:
    members = range(1, threshold + extra + 1)
    shares = split(secret, threshold, members, random.randrange)  # type: ignore[attr-defined]
    chosen = random.sample(list(members), threshold)  # type: ignore[attr-defined]
    assert combine({index: shares[index] for index in chosen}) == secret
    assert all(is_share(share) for share in shares.values())


def test_the_largest_secret_is_shared_and_one_share_less_gives_something_else() -> None:
    secret = b"\xff" * 32
    shares = split(secret, 3, range(1, 6), numbers("s"))
    assert all(combine(dict(three)) == secret for three in itertools.combinations(shares.items(), 3))
    assert combine_or_nothing(dict(list(shares.items())[:2])) != secret


def combine_or_nothing(shares: dict[int, bytes]) -> bytes:
    try:
        return combine(shares)
    except ValueError:
        return b""


def test_coefficients_are_drawn_below_the_prime_and_anew_for_each() -> None:
    limits: list[int] = []

    def one(limit: int) -> int:
        limits.append(limit)
        return 1

    assert split(bytes(32), 4, range(1, 5), one)[2] == (2 + 4 + 8).to_bytes(33, "big")
    assert limits == [PRIME] * 3


def test_what_cannot_be_shared_or_combined_is_refused() -> None:
    for secret, threshold, indices in (
        (bytes(31), 2, [1, 2]),
        (bytes(32), 1, [1, 2]),
        (bytes(32), 3, [1, 2]),
        (bytes(32), 2, [0, 1]),  # the share of 0 is the secret
        (bytes(32), 2, [1, 1, 2]),
    ):
        with pytest.raises(ValueError, match=r"secret|dealt"):
            split(secret, threshold, indices, numbers("s"))
    too_large = PRIME.to_bytes(33, "big")
    for shares in ({}, {1: bytes(32)}, {1: too_large}, {1: (2**256).to_bytes(33, "big")}):
        with pytest.raises(ValueError, match="share"):
            combine(shares)
    assert not is_share(too_large)
    assert is_share((PRIME - 1).to_bytes(33, "big"))
    assert combine({1: digest("x").rjust(33, b"\0")}) == digest("x")
