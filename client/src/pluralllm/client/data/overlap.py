"""Compares the questions of a private file with a list of questions, as the other groups of a run have them.

Runs of the format run/3 withhold questions by their keys, which neither the order of options nor the spelling changes. Runs of
earlier formats withhold them by their ids: by the exact text, and the exact options in the same order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pluralllm.common.words.questions import Question


@dataclass(frozen=True, slots=True)
class Overlap:
    """Numbers of questions of a private file."""

    shared: int  # that the list has with the same id
    apart: (
        int  # that the list has with the same key, but in another order of options or another spelling: with another id
    )


def overlap(questions: Sequence[Question], listed: Sequence[Question]) -> Overlap:
    """Returns how many of `questions` are among `listed`, by their ids and by their keys."""
    ids = {question.id for question in listed}
    keys = {question.key for question in listed}
    shared = sum(question.id in ids for question in questions)
    return Overlap(shared, sum(question.id not in ids and question.key in keys for question in questions))
