"""A question with a group's answers. Private data consists of such questions; the answers never leave the client."""

import hashlib
import unicodedata
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, repr=False)
class Question:
    """One multiple-choice question, with the share of a group's answers for each option."""

    text: str
    options: tuple[str, ...]  # at least 2
    shares: tuple[float, ...]  # one for each option, >= 0, sum 1
    # Ordinal position of each option; None for an option that is not on the scale ("refused").
    scale: tuple[float | None, ...] | None = None
    weight: float = 1.0
    is_ordered: bool = True  # False: the order of the options says nothing, as with sampled candidate answers

    @property
    def positions(self) -> tuple[float, ...]:
        """Position of each option: from 0 for the first to 1 for the last; 0 for all options that have no order."""
        last = len(self.options) - 1
        return tuple(number / last if self.is_ordered and last else 0.0 for number in range(last + 1))

    @property
    def id(self) -> str:
        """Hash of the question's text and options.

        The hash is the same in every group, so splits and caches can use the hash as a key."""
        text = "\x1f".join([self.text, *self.options])
        return hashlib.sha256(unicodedata.normalize("NFC", text).encode()).hexdigest()

    def __repr__(self) -> str:
        return f"Question({self.id[:8]}, {len(self.options)} options)"


def folded(text: str) -> str:
    """Returns a text in one form of Unicode (NFC), with single spaces."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def is_held_out(question_id: str, share: float) -> bool:
    """Returns whether a question is held out. No group trains on a question that is held out.

    A hash of the question's id decides the result, so all groups hold out the same questions.
    share: the share of all questions to hold out, 0 .. 1.
    """
    return int(hashlib.sha256(f"holdout/{question_id}".encode()).hexdigest()[:8], 16) < share * 2**32
