"""Bytes of weights that this process has received and sent, by run."""

from collections import Counter

from pluralllm.common.words.ids import RunId


class Traffic:
    """Counts from the start of the process. The intake counts updates, the model reader counts model versions."""

    def __init__(self) -> None:
        self._received: Counter[RunId] = Counter()
        self._sent: Counter[RunId] = Counter()

    def count_received(self, run: RunId, size_bytes: int) -> None:
        """Adds bytes of an update."""
        self._received[run] += size_bytes

    def count_sent(self, run: RunId, size_bytes: int) -> None:
        """Adds bytes of a model version."""
        self._sent[run] += size_bytes

    def received_bytes(self, run: RunId) -> int:
        """Bytes of this run's updates."""
        return self._received[run]

    def sent_bytes(self, run: RunId) -> int:
        """Bytes of this run's model versions."""
        return self._sent[run]

    def totals(self) -> tuple[int, int]:
        """Bytes received and bytes sent for all runs together."""
        return self._received.total(), self._sent.total()
