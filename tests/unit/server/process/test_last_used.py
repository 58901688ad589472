"""Only the values that were used last stay in memory."""

from pluralllm.server.process.last_used import LastUsed


def test_a_value_that_was_not_used_for_the_longest_time_makes_room() -> None:
    kept = LastUsed[str, int](2)
    assert kept.put("a", 1) == 1
    kept.put("b", 2)
    assert kept.get("a") == 1
    kept.put("c", 3)
    assert [kept.get(key) for key in "abc"] == [1, None, 3]


def test_a_newer_value_of_a_key_takes_no_more_room_and_counts_as_used() -> None:
    kept = LastUsed[str, int](2)
    for key, value in (("a", 1), ("b", 2), ("a", 4), ("c", 3)):
        kept.put(key, value)
    assert [kept.get(key) for key in "abc"] == [4, None, 3]
