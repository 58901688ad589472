"""An experiment's scores equal those of the predictor, question by question."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from support.small_survey import KERNEL, small_group, small_spec

from pluralllm.common.predictor.data import Episode, GroupData, log_softmax_by_question, make_batch
from pluralllm.common.predictor.metrics import js_distance
from pluralllm.common.words.questions import HoldOut
from pluralllm.experiment.federated import first_values
from pluralllm.experiment.scoring import Scorer, alignment, episode_of, gain_of, next_groups, own_episode
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


@pytest.mark.parametrize("predictor", [{}, KERNEL], ids=["tnp-d/1", "fourier-kernel/1"])
def test_another_groups_context_predicts_the_same_questions_from_its_own_answers(predictor: dict[str, Any]) -> None:
    spec, own, other = small_spec({"predictor": predictor}), small_group("a", seed=1), small_group("b", seed=2)
    scorer, context, targets = Scorer(spec, first_values(spec), own, CPU), (0, 3, 5), (7, 1, 2)
    disguised = replace(own, shares=other.shares, questions=other.questions)
    expected = Scorer(spec, first_values(spec), disguised, CPU).shares(Episode(context, targets))
    foreign = scorer.score_with_another(targets, other, context)
    for score, shares in zip(foreign, expected.values(), strict=True):
        assert score.distance == pytest.approx(js_distance(shares, own.questions[score.question].shares), abs=1e-5)
    assert scorer.score_with_another(targets, own, context) == scorer.score(Episode(context, targets))


def test_the_context_gain_compares_the_mean_over_other_groups_and_draws_for_the_same_targets() -> None:
    spec, own = small_spec({"predictor": KERNEL}), small_group("a", seed=1)
    others = [small_group(name, seed=seed) for name, seed in (("b", 2), ("c", 3))]
    scorer = Scorer(spec, first_values(spec), own, CPU)
    episodes = [Episode((0, 3), (7, 1)), Episode((4, 5), (7, 2, 9))]
    contexts = {("b", 0): (1, 2), ("b", 1): (3,), ("c", 0): (9, 8), ("c", 1): (5, 6)}
    own_score, foreign = gain_of(scorer, episodes, others, lambda data, draw: contexts[data.group, draw])
    assert own_score == pytest.approx(alignment(map(scorer.score, episodes)))
    scores = [
        scorer.score_with_another(episode.targets, data, contexts[data.group, draw])
        for draw, episode in enumerate(episodes)
        for data in others
    ]
    assert foreign == pytest.approx(alignment(scores))


def test_the_next_groups_in_alphabetical_order_lend_their_contexts_at_most_five() -> None:
    assert next_groups("c", {"d": 0, "a": 0, "c": 0, "b": 0}) == ["d", "a", "b"]
    assert next_groups("b", "hgfedcba") == list("cdefg")
    assert next_groups("h", "hgfedcba") == list("abcde")
    assert next_groups("a", ["a"]) == []


def test_shares_are_by_question_and_sum_to_one() -> None:
    spec, data = small_spec(), small_group()
    found = Scorer(spec, first_values(spec), data, CPU).shares(Episode((0, 3, 5), (7, 1, 2)))
    assert list(found) == [7, 1, 2]
    for number, shares in found.items():
        assert shares.shape == (len(data.questions[number].options),)
        assert float(shares.sum()) == pytest.approx(1, abs=1e-5)


def test_a_groups_own_episode_has_the_same_context_and_no_withheld_targets_unless_it_trains() -> None:
    spec, data = small_spec({"evaluation": {"holdout_share": 0.4}}), small_group()
    withheld = set(data.split(spec.held_out)[1])
    everything, own = (choose(spec, data, "test", 3, 0) for choose in (episode_of, own_episode))
    assert own.context == everything.context
    assert set(everything.targets) & withheld
    assert own.targets == tuple(q for q in everything.targets if q not in withheld)
    trained = own_episode(spec, data, "train", 3, 0)
    assert set(trained.targets) == withheld
    assert not set(trained.context) & withheld


def test_only_a_training_groups_questions_are_split_for_its_episode(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, data = small_spec(), small_group()
    expected = {group_part: episode_of(spec, data, group_part, 3, 0) for group_part in ("test", "train")}
    split, asked = GroupData.split, list[str]()

    def counted(self: GroupData, held_out: HoldOut) -> tuple[tuple[int, ...], tuple[int, ...]]:
        asked.append(self.group)
        return split(self, held_out)

    monkeypatch.setattr(GroupData, "split", counted)
    assert episode_of(spec, data, "test", 3, 0) == expected["test"]
    assert asked == []
    assert episode_of(spec, data, "train", 3, 0) == expected["train"]
    assert len(asked) == 1
