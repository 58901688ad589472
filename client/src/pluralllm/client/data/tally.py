"""Counts single answers into one question, so that one respondent adds at most 1 to the question's counts."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pluralllm.client.data.counted_question import CountedQuestion, shares_of


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of one respondent to one question."""

    option: str
    weight: float = 1.0
    respondent: str = ""  # empty: nothing tells whose answer it is; it then counts as the only one of its respondent


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights of a survey's respondents."""

    exist: bool  # False: every respondent has the weight 1
    largest: float | None = (
        None  # heavier weights are lowered to it; None: weights stay as they are, and no counts are kept
    )

    def lowered(self, weight: float) -> float:
        """Returns the weight that counts."""
        return weight if self.largest is None or not self.exist else min(weight, self.largest)


def tally(
    text: str,
    options: Sequence[str],
    answers: Sequence[Answer],
    weights: Weights,
    scale: tuple[float | None, ...] | None = None,
    key: str | None = None,
) -> CountedQuestion:
    """Returns a question with the shares of its options, and with counts unless a respondent's weight has no bound.

    answers: those to this question; each one's option must be one of `options`. Several answers of one respondent share the
    respondent's weight. Counts are weights divided by the largest weight. The shares are all equal if nobody has answered.
    key: the question's stated key, if there is one.
    """
    answers = [answer for answer in answers if answer.weight > 0]
    of_respondent = Counter(answer.respondent for answer in answers)
    alone = of_respondent.pop("", 0)
    added: dict[str, list[float]] = {option: [] for option in options}
    for answer in answers:
        added[answer.option].append(weights.lowered(answer.weight) / of_respondent.get(answer.respondent, 1))
    numbers = [math.fsum(added[option]) for option in options]
    shares = shares_of(numbers, math.fsum(numbers))
    unit = 1.0 if not weights.exist else weights.largest
    counts = () if unit is None else tuple(number / unit for number in numbers)
    respondents = alone + len(of_respondent)
    return CountedQuestion(text, tuple(options), shares, scale, stated_key=key, counts=counts, respondents=respondents)
