"""A partner that has released its answers with noise: what the strongest attacks recover of them, beside the noised file itself.

The attacker gets the noised answers at best, because the client computes everything from them. So nothing that is recovered
exactly can be nearer to the true answers than the noised file is.
"""

import tempfile
from pathlib import Path

import numpy as np
from noised_answers import Survey, released, with_answers

from leak import crafted, sums
from leak.setting import GROUPS, Shares, distance, shares_of, spec_of, update_of
from pluralllm.client.privacy.mechanism import Draw, opendp_draw
from pluralllm.common.predictor.data import GroupData
from pluralllm.experiment.federated import first_values

RESPONDENTS, DELTA = 1_000, 1e-6  # assumptions: the data set has shares alone
SEED = 20_031  # of the client's training


def noised(data: GroupData, epsilon: float, draw: Draw = opendp_draw) -> GroupData:
    """Returns a group with answers released with noise. Every respondent may have answered every question of the group."""
    survey = Survey(RESPONDENTS, len(data.questions), DELTA)
    with tempfile.TemporaryDirectory() as folder:
        return with_answers(data, released(data.questions, epsilon, survey, Path(folder) / "partner", draw))


def from_sums(data: GroupData) -> Shares:
    """Returns the shares that a coordinator computes from a client's first answer in a run of kernel-sums/1."""
    spec = sums.spec_of_sums((data.group,))
    return sums.answers_of(data, sums.public_features(spec, data), sums.sent(spec, data))


def from_adversarial_task(data: GroupData) -> Shares:
    """Returns the shares that a coordinator computes from one adversarial task, which needs the owner's consent."""
    spec = spec_of(GROUPS, "attention", **crafted.settings_for(data))
    base = crafted.without_context(spec, first_values(spec))
    return crafted.answers_of(spec, base, update_of(spec, base, data, SEED, 1), data)


def figures(groups: dict[str, GroupData], asked: str, epsilon: float) -> dict[str, float]:
    """Returns distances to the true answers, with the distances to the noised ones beside them. asked: group of the task."""
    partners = {name: noised(data, epsilon) for name, data in groups.items()}
    guesses = {name: from_sums(data) for name, data in partners.items()}
    task = from_adversarial_task(partners[asked])

    def mean(of: dict[str, GroupData], guess: dict[str, Shares]) -> float:
        return float(np.mean([distance(of[name], guess[name]) for name in of]))

    files = {name: shares_of(data) for name, data in partners.items()}
    measured = {
        "the noised files": mean(groups, files),
        "sums of one client": mean(groups, guesses),
        "  their distance to the noised files": mean(partners, guesses),
        f"the noised file of {asked}": distance(groups[asked], files[asked]),
        "adversarial task after consent": distance(groups[asked], task),
        "  its distance to the noised file": distance(partners[asked], task),
    }
    return {f"epsilon {epsilon:g}: {name}": value for name, value in measured.items()}
