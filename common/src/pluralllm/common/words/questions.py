"""A question with a group's answers, and the rule by which all groups withhold the same questions from training.

Private data consists of such questions; the answers never leave the client.
"""

import hashlib
import unicodedata
from dataclasses import dataclass

KEY_SEPARATOR = "\x1f"  # between the text and the options of a question, where they are its key


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
    stated_key: str | None = None  # joins wordings and languages of one question; the same in all groups

    @property
    def positions(self) -> tuple[float, ...]:
        """Position of each option: from 0 for the first to 1 for the last; 0 for all options that have no order."""
        last = len(self.options) - 1
        return tuple(number / last if self.is_ordered and last else 0.0 for number in range(last + 1))

    @property
    def id(self) -> str:
        """Hash of the question's exact text and of its options in order. Caches and tables of scores name the question by it."""
        text = KEY_SEPARATOR.join([self.text, *self.options])
        return hashlib.sha256(unicodedata.normalize("NFC", text).encode()).hexdigest()

    @property
    def key(self) -> str:
        """Hash that names the question in every group, whatever the order of its options, and however it is spelled.

        The case of letters, white space, the form of quotation marks and dashes and Unicode's forms of a letter do not count. A
        stated key takes the place of text and options; it may be those of another wording, with KEY_SEPARATOR between them.
        """
        texts = [self.text, *self.options] if self.stated_key is None else self.stated_key.split(KEY_SEPARATOR)
        question, *options = [spelled_alike(text) for text in texts]
        return hashlib.sha256(KEY_SEPARATOR.join([question, *sorted(options)]).encode()).hexdigest()

    def __repr__(self) -> str:
        return f"Question({self.id[:8]}, {len(self.options)} options)"


def folded(text: str) -> str:
    """Returns a text in one form of Unicode (NFC), with single spaces."""
    return " ".join(unicodedata.normalize("NFC", text).split())


_MARKS = str.maketrans(
    {**dict.fromkeys("‘’‚‛`´ʼ", "'"), **dict.fromkeys("“”„‟«»", '"'), **dict.fromkeys("‐‑‒–—―−", "-")}
)


def spelled_alike(text: str) -> str:
    """Returns a text in one spelling: no case, single spaces, plain quotation marks and dashes, Unicode's form NFKC.

    Marks that no reader sees, such as a zero-width space, are left out.
    """
    if text.isascii():  # as most texts are; the steps below would give the same, in ten times the time
        return " ".join(text.replace("`", "'").casefold().split())
    composed = unicodedata.normalize("NFKC", text.translate(_MARKS)).casefold()
    seen = "".join(letter for letter in composed if unicodedata.category(letter) != "Cf")
    return folded(seen)


@dataclass(frozen=True, slots=True)
class HoldOut:
    """The rule by which all groups withhold the same questions: no group trains on them. A hash of the question decides."""

    share: float  # of all questions, 0 .. 1
    by_key: bool = True  # False: by the id, as in run specs of the formats run/1 and run/2

    def includes(self, question: Question) -> bool:
        """Returns whether a question is withheld."""
        name = question.key if self.by_key else question.id
        return int(hashlib.sha256(f"holdout/{name}".encode()).hexdigest()[:8], 16) < self.share * 2**32
