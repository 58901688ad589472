"""A group's answers to one question: the unit of private data. It never leaves the client."""

import hashlib
import unicodedata
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, repr=False)
class Question:
    """One multiple-choice question and how a group answered it."""

    text: str
    options: tuple[str, ...]  # at least 2
    shares: tuple[float, ...]  # one for each option, >= 0, sum 1
    scale: tuple[float | None, ...] | None = (
        None  # ordinal position of each option; None for one off the scale (refused)
    )
    weight: float = 1.0

    @property
    def id(self) -> str:
        """Hash of question and options, the same in every group: what splits and caches go by."""
        text = "\x1f".join([self.text, *self.options])
        return hashlib.sha256(unicodedata.normalize("NFC", text).encode()).hexdigest()

    def __repr__(self) -> str:
        return f"Question({self.id[:8]}, {len(self.options)} options)"


def is_held_out(question_id: str, share: float) -> bool:
    """Whether a question belongs to the share no training group trains on; decided by hash alone, so alike everywhere."""
    return int(hashlib.sha256(f"holdout/{question_id}".encode()).hexdigest()[:8], 16) < share * 2**32
