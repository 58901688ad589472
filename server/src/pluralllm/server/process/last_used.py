"""Keeps a limited number of values in memory: those that were used last."""

from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class LastUsed(Generic[Key, Value]):
    """The values of the keys that were used last. The value of a key that was not used for the longest time is forgotten."""

    def __init__(self, most: int) -> None:
        """`most` is the largest number of keys."""
        self._most = most
        self._values: dict[Key, Value] = {}  # the one that was not used for the longest time is the first

    def get(self, key: Key) -> Value | None:
        """Returns the value of a key, or None if it is not kept."""
        if key not in self._values:
            return None
        value = self._values[key] = self._values.pop(key)
        return value

    def put(self, key: Key, value: Value) -> Value:
        """Keeps a value, in place of an older value of the key, and returns it."""
        self._values.pop(key, None)
        self._values[key] = value
        while len(self._values) > self._most:
            del self._values[next(iter(self._values))]
        return value
