"""Finds what an embedding model cannot see in texts: cut ends, unknown tokens, and options whose vectors are equal.

A predictor reads only vectors. What the vectors do not show cannot be learned, and no error appears: the scores are only lower.
The counts are about private texts. They stay on the partner's machine.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

ALIKE_COSINE = 0.9999  # two options above it are one option for a predictor
MULTILINGUAL = "intfloat/multilingual-e5-small or sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2"


@dataclass(frozen=True, slots=True)
class TokenCount:
    """The numbers of tokens of one text."""

    whole: int  # before the text is cut
    read: int  # after it
    unknown: int  # tokens that stand for characters or words that the tokenizer does not know


@dataclass(frozen=True, slots=True)
class Blindness:
    """Counts of what the embedding model did not see. The sum of two objects has the counts of both."""

    texts: int = 0  # whose tokens were counted
    uncounted_texts: int = 0  # whose vectors an earlier release has cached, without the numbers of their tokens
    cut_texts: int = 0
    tokens: int = 0
    unknown_tokens: int = 0
    questions: int = 0
    alike_questions: int = 0  # questions with two options whose vectors are equal

    def __add__(self, other: "Blindness") -> "Blindness":
        return Blindness(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(Blindness)))

    def kinds(self) -> tuple[str, ...]:
        """Returns the kinds of blindness without numbers, which may stand where somebody else reads them."""
        kinds = {
            "the ends of some texts": self.cut_texts,
            "some characters, which are unknown tokens": self.unknown_tokens,
            "the difference between options of some questions": self.alike_questions,
        }
        return tuple(kind for kind, count in kinds.items() if count)

    def notes(self, max_tokens: int) -> tuple[str, ...]:
        """Returns a sentence with numbers and a fix for each kind of blindness; () if the model saw everything.

        max_tokens: the run spec's limit for the tokens of a text; a model may read fewer.
        """
        notes = []
        if self.cut_texts:
            notes.append(
                f"{self.cut_texts} of {self.texts} texts are cut at {max_tokens} tokens, or earlier if the model reads fewer;"
                " set a greater embedding.max_tokens in the run spec, or choose a model that reads longer texts"
            )
        if self.unknown_tokens:
            notes.append(
                f"{self.unknown_tokens} of {self.tokens} tokens ({self.unknown_tokens / self.tokens:.1%}) are unknown to the"
                " embedding model; for texts that are not English, choose a multilingual model, such as"
                f" {MULTILINGUAL}"
            )
        if self.alike_questions:
            notes.append(
                f"{self.alike_questions} of {self.questions} questions have options with equal vectors, so predictions cannot"
                f" tell these options apart; choose a model that knows their language, such as {MULTILINGUAL}"
            )
        if self.uncounted_texts:
            notes.append(
                f"the tokens of {self.uncounted_texts} texts are not counted, because an earlier release embedded these texts;"
                " an empty cache folder counts them"
            )
        return tuple(notes)


def blindness_of(
    tokens: Sequence[TokenCount | None],
    embedded: Sequence[NDArray[np.float32]] = (),
    templates: int = 1,
) -> Blindness:
    """Counts what an embedding model did not see.

    tokens: of each distinct text; None if the number is not known.
    embedded: for each question, the vectors of its options, (options, D). templates: number of parts of equal length in a vector.
    """
    counted = [count for count in tokens if count is not None]
    return Blindness(
        texts=len(counted),
        uncounted_texts=len(tokens) - len(counted),
        cut_texts=sum(count.whole > count.read for count in counted),
        tokens=sum(count.whole for count in counted),
        unknown_tokens=sum(count.unknown for count in counted),
        questions=len(embedded),
        alike_questions=sum(has_alike_options(options, templates) for options in embedded),
    )


def has_alike_options(options: NDArray[np.float32], templates: int) -> bool:
    """Returns whether two options of a question have equal vectors: in each template's part, their cosine is above ALIKE_COSINE.

    The parts are compared one by one, because the part of the question's text is the same for all options.
    Shape: (K, templates * w), with K options.
    """
    count = len(options)
    parts = options.reshape(count, templates, -1).astype(np.float64).swapaxes(0, 1)  # (templates, K, w)
    lengths = np.linalg.norm(parts, axis=2, keepdims=True)
    unit = parts / np.where(lengths > 0, lengths, 1)
    cosines = (unit @ unit.swapaxes(1, 2)).min(0)  # (K, K)
    return bool((cosines[np.triu_indices(count, 1)] > ALIKE_COSINE).any())


def are_usable(vectors: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Returns for each vector whether it has a direction: all its numbers are finite, and one of them is not 0.

    Shapes: (R, w) -> (R,).
    """
    usable: NDArray[np.bool_] = np.isfinite(vectors).all(1) & (vectors != 0).any(1)
    return usable
