"""One question with a group's answers: the unit of private data, which never leaves the client."""

import hashlib
import unicodedata
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, repr=False)
class Question:
    """One multiple-choice question with the shares of a group's answers."""

    text: str
    options: tuple[str, ...]  # at least 2
    shares: tuple[float, ...]  # one for each option, >= 0, sum 1
    # Ordinal position of each option; None for an option that is not on the scale ("refused").
    scale: tuple[float | None, ...] | None = None
    weight: float = 1.0

    @property
    def id(self) -> str:
        """Hash of question and options: the same in every group, so that splits and caches can use it."""
        text = "\x1f".join([self.text, *self.options])
        return hashlib.sha256(unicodedata.normalize("NFC", text).encode()).hexdigest()

    def __repr__(self) -> str:
        return f"Question({self.id[:8]}, {len(self.options)} options)"


def is_held_out(question_id: str, share: float) -> bool:
    """Returns whether a question belongs to the share that no group trains on. The hash decides, so all groups agree."""
    return int(hashlib.sha256(f"holdout/{question_id}".encode()).hexdigest()[:8], 16) < share * 2**32
