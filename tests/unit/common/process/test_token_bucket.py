"""The token bucket: a burst at first, then one use for each token that time adds."""

from pluralllm.common.process.token_bucket import TokenBucket


def test_a_burst_is_free_and_the_next_use_waits_for_its_token() -> None:
    bucket = TokenBucket(3, 2.0)
    assert [bucket.wait_s(100.0) for _ in range(4)] == [0, 0, 0, 2.0]
    assert bucket.wait_s(101.0) == 1.0
    assert bucket.wait_s(102.0) == 0.0
    assert bucket.wait_s(102.0) == 2.0


def test_a_long_rest_saves_no_more_than_the_burst() -> None:
    bucket = TokenBucket(2, 1.0)
    bucket.wait_s(0.0)
    assert [bucket.wait_s(1e6) for _ in range(3)] == [0, 0, 1.0]


def test_a_clock_that_goes_back_takes_no_token() -> None:
    bucket = TokenBucket(1, 1.0)
    bucket.wait_s(50.0)
    assert bucket.wait_s(10.0) == 1.0
