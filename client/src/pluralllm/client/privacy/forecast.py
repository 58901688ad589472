"""Tells a partner what noise would do to its answers, before anything is spent. The results are for this machine only."""

import math
import random
from collections.abc import Sequence
from statistics import fmean, median

from pluralllm.client.data.counted_question import CountedQuestion
from pluralllm.client.privacy.accountant import rho_of
from pluralllm.client.privacy.estimate import likely_shares
from pluralllm.client.privacy.mechanism import noise_on_counts
from pluralllm.common.predictor.metrics import js_distance

DRAWS = 3  # of each question, for the mean distance


def forecast(
    questions: Sequence[CountedQuestion], epsilon: float, delta: float, questions_per_respondent: int = 0
) -> dict[str, float | None]:
    """Returns the noise that a first release of all questions would add, under the names of the form `data-check`.

    questions_per_respondent: the most that one respondent has answered; 0: all questions. The values are None where no question
    has counts or a number of respondents.
    """
    usable = [(question, _numbers(question)) for question in questions]
    usable = [(question, numbers) for question, numbers in usable if sum(numbers) > 0]
    if not usable:
        return {"noise_on_a_share": None, "distance_of_noised_answers": None}
    rho = rho_of(epsilon, delta) / min(questions_per_respondent or len(questions), len(questions))
    chance = random.Random(0)  # noqa: S311 - a forecast protects nobody and is never released
    on_shares, distances = [], []
    for question, numbers in usable:
        sigma = noise_on_counts(len(numbers), rho, 1.0)
        on_shares.append(sigma / math.fsum(numbers))
        for _ in range(DRAWS):
            noised = likely_shares([number + chance.gauss(0, sigma) for number in numbers], sigma)
            distances.append(js_distance(noised, question.shares))
    return {
        "noise_on_a_share": float(f"{median(on_shares):.3g}"),
        "distance_of_noised_answers": float(f"{fmean(distances):.3g}"),
    }


def _numbers(question: CountedQuestion) -> tuple[float, ...]:
    """Returns a question's counts, or its shares of the number of respondents; no numbers where neither is known."""
    return question.counts or tuple(share * (question.respondents or 0) for share in question.shares)
