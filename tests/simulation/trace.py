"""A hash of everything that happened: the same seed gives the same hash on every machine."""

import hashlib
from collections.abc import Callable


class Trace:
    """A hash chain for each actor, because the order of actors at the same moment means nothing."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._chains: dict[str, bytes] = {}

    def note(self, actor: str, what: str) -> None:
        link = f"{self._now_s():.6f} {what}".encode()
        self._chains[actor] = hashlib.sha256(self._chains.get(actor, b"") + link).digest()

    def sha256(self) -> str:
        text = "".join(f"{actor} {chain.hex()}\n" for actor, chain in sorted(self._chains.items()))
        return hashlib.sha256(text.encode()).hexdigest()
