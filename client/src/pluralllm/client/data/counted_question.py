"""A question with the number of respondents behind each share. Noise is added to these numbers, never to shares."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pluralllm.common.words.questions import Question


@dataclass(frozen=True, slots=True, repr=False)
class CountedQuestion(Question):
    """A question with its counts. One respondent adds at most 1 to the counts of one question.

    Only the importers, the private file and the package privacy read the counts; a test enforces it.
    """

    counts: tuple[float, ...] = ()  # one for each option, 0 or more; empty if only the shares are known
    respondents: int | None = None  # number of people who answered this question; None if unknown


def is_countable(question: Question) -> bool:
    """Returns whether noise can be added to a question: it has counts, or shares of a number of respondents."""
    return isinstance(question, CountedQuestion) and (bool(question.counts) or question.respondents is not None)


def have_counts(questions: Iterable[Question]) -> bool:
    """Returns whether every question has counts. An import then keeps all questions that were asked, answered or not."""
    return all(isinstance(question, CountedQuestion) and bool(question.counts) for question in questions)


def shares_of(numbers: Sequence[float], total: float) -> tuple[float, ...]:
    """Returns the numbers divided by their total; equal shares if the total is 0."""
    return tuple(number / total for number in numbers) if total > 0 else (1 / len(numbers),) * len(numbers)
