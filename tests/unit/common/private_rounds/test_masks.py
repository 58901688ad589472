"""Streams of masks: AES-256-CTR from any number on, and pairs that cancel."""

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st
from support.private_members import digest

from pluralllm.common.private_rounds import masks

KEY = digest("key")


def whole(key: bytes, count: int) -> np.ndarray:
    raw = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update(bytes(4 * count))
    return np.frombuffer(raw, "<u4")


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 200), st.integers(0, 100))
def test_a_stream_is_the_same_from_wherever_it_is_read(offset: int, count: int) -> None:
    assert np.array_equal(masks.stream(KEY, offset, count), whole(KEY, 300)[offset : offset + count])


def test_a_long_stream_goes_on_from_piece_to_piece_and_from_call_to_call() -> None:
    count = 2 * masks.PIECE + 7
    expected = whole(KEY, count)
    assert np.array_equal(masks.stream(KEY, 0, count), expected)
    streams, values = masks.MaskStreams([(KEY, 1)], 5), np.zeros(count - 5, np.uint32)
    for start, end in ((0, 3), (3, 3), (3, 70_000), (70_000, count)):
        streams.add_to(values[start:end])
    assert np.array_equal(values, expected[5:])


def test_streams_are_added_and_subtracted_modulo_two_to_the_32() -> None:
    values = np.arange(50, dtype=np.uint32)
    masks.add_masks(values, 3, [(KEY, 1), (digest("other"), -1)])
    plus, minus = masks.stream(KEY, 3, 50).astype(np.int64), masks.stream(digest("other"), 3, 50).astype(np.int64)
    assert np.array_equal(values, ((np.arange(50) + plus - minus) % 2**32).astype(np.uint32))
    masks.add_masks(values, 3, masks.opposite([(KEY, 1), (digest("other"), -1)]))
    assert np.array_equal(values, np.arange(50))


def test_both_members_of_a_pair_have_one_key_and_opposite_signs() -> None:
    low_to_high, high_to_low, r2 = digest("k12"), digest("k21"), digest("R2")
    key, sign = masks.pair_key_with_sign(low_to_high, high_to_low, r2, 1, 2)
    assert masks.pair_key_with_sign(high_to_low, low_to_high, r2, 2, 1) == (key, -sign)
    assert sign == 1
    others = {
        masks.pair_stream_key(low_to_high, high_to_low, digest("another R2"), 1, 2),
        masks.pair_stream_key(high_to_low, low_to_high, r2, 1, 2),
        masks.pair_stream_key(low_to_high, high_to_low, r2, 1, 3),
        masks.self_stream_key(low_to_high, r2, 1),
        masks.self_stream_key(low_to_high, r2, 2),
    }
    assert len(others | {key}) == 6
    with pytest.raises(ValueError, match="not in order"):
        masks.pair_stream_key(low_to_high, high_to_low, r2, 2, 1)


def test_a_member_masks_with_its_own_stream_and_one_of_each_pair() -> None:
    r2, halves = digest("R2"), {1: (digest("21"), digest("12")), 3: (digest("23"), digest("32"))}
    assert masks.masking_keys(KEY, halves, r2, 2) == [
        (masks.self_stream_key(KEY, r2, 2), 1),
        (masks.pair_stream_key(digest("12"), digest("21"), r2, 1, 2), -1),
        (masks.pair_stream_key(digest("23"), digest("32"), r2, 2, 3), 1),
    ]


@pytest.mark.parametrize(("key", "sign"), [(bytes(16), 1), (KEY, 0), (KEY, 2)])
def test_a_key_of_another_size_or_sign_is_refused(key: bytes, sign: int) -> None:
    with pytest.raises(ValueError, match="32 bytes and a sign"):
        masks.MaskStreams([(key, sign)])
