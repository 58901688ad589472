"""Compares the questions of a private file with a list of questions, as the other groups of a run have them.

Groups withhold the same questions only if these have one id in all groups: the same text, and the same options in the same order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pluralllm.client.data.survey_texts import text_of
from pluralllm.common.words.questions import Question


@dataclass(frozen=True, slots=True)
class Overlap:
    """Numbers of questions of a private file."""

    shared: int  # that the list has with the same id
    apart: int  # that the list has with the same words, but in another order of options or another spelling: with another id


def overlap(questions: Sequence[Question], listed: Sequence[Question]) -> Overlap:
    """Returns how many of `questions` are among `listed`, by their ids and by their words."""
    ids = {question.id for question in listed}
    words = {_words(question) for question in listed}
    shared = sum(question.id in ids for question in questions)
    return Overlap(shared, sum(question.id not in ids and _words(question) in words for question in questions))


def _words(question: Question) -> tuple[str, tuple[str, ...]]:
    """Returns what makes two questions one to a reader, whatever the order of options, white space and the case of letters."""
    return text_of(question.text).casefold(), tuple(sorted(text_of(option).casefold() for option in question.options))
