"""Counts, for each run, the bytes of updates received and of model versions sent since the process started."""

from collections import Counter

from pluralllm.common.words.ids import RunId


class Traffic:
    """Byte counters for each run. All counters are 0 when the process starts."""

    def __init__(self) -> None:
        self._received: Counter[RunId] = Counter()
        self._sent: Counter[RunId] = Counter()

    def count_received(self, run: RunId, size_bytes: int) -> None:
        """Increases the run's counter of bytes received in updates by `size_bytes`."""
        self._received[run] += size_bytes

    def count_sent(self, run: RunId, size_bytes: int) -> None:
        """Increases the run's counter of bytes sent in model versions by `size_bytes`."""
        self._sent[run] += size_bytes

    def received_bytes(self, run: RunId) -> int:
        """Returns the bytes received in the updates of the run."""
        return self._received[run]

    def sent_bytes(self, run: RunId) -> int:
        """Returns the bytes sent in the model versions of the run."""
        return self._sent[run]

    def totals(self) -> tuple[int, int]:
        """Returns the bytes received and the bytes sent, each summed over all runs."""
        return self._received.total(), self._sent.total()
