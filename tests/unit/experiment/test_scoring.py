"""An experiment's scores equal those of the predictor, question by question."""

from typing import Any

import numpy as np
import pytest
import torch
from support.small_survey import KERNEL, small_group, small_spec

from pluralllm.common.predictor.data import Episode, log_softmax_by_question, make_batch
from pluralllm.common.predictor.metrics import js_distance
from pluralllm.experiment.federated import first_values
from pluralllm.experiment.scoring import Scorer, alignment, episode_of, own_episode
from pluralllm.experiment.stacked import StackedPredictors

CPU = torch.device("cpu")


@pytest.mark.parametrize("predictor", [{}, KERNEL], ids=["tnp-d/1", "fourier-kernel/1"])
def test_scores_are_those_of_the_predictor_question_by_question(predictor: dict[str, Any]) -> None:
    spec, data = small_spec({"predictor": predictor}), small_group()
    values, episode = first_values(spec), Episode((0, 3, 5), (7, 1, 2))
    batch = make_batch([(data, episode)])
    with torch.no_grad():
        predicted = StackedPredictors(spec, [values], CPU)(batch, training=False)
    shares = log_softmax_by_question(predicted.mean, batch.targets.question, batch.questions).exp()[0].numpy()
    spreads = predicted.log_std[0].exp().numpy()
    question_scores = Scorer(spec, values, data, CPU).score(episode)
    assert [scored.question for scored in question_scores] == [7, 1, 2]
    at = 0
    for scored in question_scores:
        points = slice(at, at + len(data.questions[scored.question].options))
        true = np.array(data.questions[scored.question].shares)
        assert scored.distance == pytest.approx(js_distance(shares[points], true), abs=1e-5)
        assert scored.error == pytest.approx(np.sqrt(np.mean((shares[points] - true) ** 2)), abs=1e-5)
        assert scored.log_std == pytest.approx(np.log(np.sqrt(np.mean(spreads[points] ** 2))), abs=1e-5)
        at = points.stop
    assert alignment([question_scores]) == pytest.approx(1 - np.mean([scored.distance for scored in question_scores]))


def test_shares_are_by_question_and_sum_to_one() -> None:
    spec, data = small_spec(), small_group()
    found = Scorer(spec, first_values(spec), data, CPU).shares(Episode((0, 3, 5), (7, 1, 2)))
    assert list(found) == [7, 1, 2]
    for number, shares in found.items():
        assert shares.shape == (len(data.questions[number].options),)
        assert float(shares.sum()) == pytest.approx(1, abs=1e-5)


def test_a_groups_own_episode_has_the_same_context_and_no_withheld_targets_unless_it_trains() -> None:
    spec, data = small_spec({"evaluation": {"holdout_share": 0.4}}), small_group()
    withheld = set(data.split(0.4)[1])
    everything, own = (choose(spec, data, "test", 3, 0) for choose in (episode_of, own_episode))
    assert own.context == everything.context
    assert set(everything.targets) & withheld
    assert own.targets == tuple(q for q in everything.targets if q not in withheld)
    trained = own_episode(spec, data, "train", 3, 0)
    assert set(trained.targets) == withheld
    assert not set(trained.context) & withheld
