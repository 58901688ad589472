"""A group's predictor makes the predictions of a whole pass and reads the context once."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.process_harness import WIDTH, tiny_embedding_model

from pluralllm.client.data.sample_survey import sample_groups
from pluralllm.common.errors.tree import TooFewQuestions
from pluralllm.common.predictor.data import Episode, group_data, log_softmax_by_question, make_batch
from pluralllm.common.predictor.embedding import Embedder
from pluralllm.common.predictor.group_predictor import GroupPredictor
from pluralllm.common.predictor.model import new_predictor
from pluralllm.common.words.embedding import Embedding
from pluralllm.common.words.predictors import FourierKernel, NeuralProcess
from pluralllm.common.words.questions import Question

CPU = torch.device("cpu")


@pytest.fixture
def embedder(tmp_path: Path) -> Embedder:
    contract = Embedding(model="tiny", dimension=2 * WIDTH)
    return Embedder(contract, tiny_embedding_model(tmp_path / "model"), tmp_path, CPU)


CONFIGS = (
    NeuralProcess(d_model=16, heads=2, feedforward=16),
    FourierKernel(architecture="fourier-kernel/1", features=30, group_rank=3),
)


@pytest.mark.parametrize("config", CONFIGS, ids=["tnp-d/1", "fourier-kernel/1"])
def test_predictions_are_those_of_a_whole_pass_and_the_context_is_read_once(
    embedder: Embedder, config: NeuralProcess | FourierKernel
) -> None:
    torch.manual_seed(1)
    model = new_predictor(config, embedder.contract)
    questions, _ = sample_groups(2, 40, 0).values()
    data = group_data("g", questions, embedder.embed_questions(questions, lambda _done, _all: None))
    batch = make_batch([(data, Episode(tuple(range(10)), tuple(range(10, 40))))])
    with torch.no_grad():
        whole = model(batch.context, batch.context_shares, batch.targets)
    shares = log_softmax_by_question(whole.mean, batch.targets.question, batch.questions)[0].exp().numpy()
    encoded: list[int] = []
    encode = model.encode_context
    model.encode_context = lambda *inputs: encoded.append(1) or encode(*inputs)  # type: ignore[func-returns-value,method-assign]
    predictor = GroupPredictor(model, embedder, "g", questions[:10], CPU)
    answers = [*predictor.predict(questions[10:25]), *predictor.predict(questions[25:])]
    assert encoded == [1]
    assert np.concatenate([answer.shares for answer in answers]) == pytest.approx(shares, abs=1e-5)
    assert np.concatenate([answer.spreads for answer in answers]) == pytest.approx(
        whole.log_std[0].exp().numpy(), rel=1e-4
    )
    assert [len(answer.shares) for answer in answers] == [len(question.options) for question in questions[10:]]
    assert predictor.predict([]) == []
    features = predictor.features(questions[10:])  # of use for every group
    other = GroupPredictor(model, embedder, "h", [replace(q, shares=q.shares[::-1]) for q in questions[:10]], CPU)
    again = [list(one.predict_features(features, questions[10:])) for one in (predictor, other)]
    assert np.concatenate([answer.shares for answer in again[0]]) == pytest.approx(shares, abs=1e-5)
    expected = other.predict(questions[10:])
    for one, same in zip(again[1], expected, strict=True):
        assert one.shares == pytest.approx(same.shares, abs=1e-5)


def test_sampled_candidates_are_predicted_the_same_in_every_order(embedder: Embedder) -> None:
    """Position is no property of a candidate that a policy sampled; an option of a survey has one."""
    model = new_predictor(CONFIGS[1], embedder.contract)
    questions, _ = sample_groups(2, 40, 0).values()
    predictor = GroupPredictor(model, embedder, "g", questions[:10], CPU)
    for ordered in (False, True):
        asked = Question("Which?", ("Tea", "Bus", "Never"), (1 / 3,) * 3, is_ordered=ordered)
        one, turned = predictor.predict([asked, replace(asked, options=asked.options[::-1])])
        assert (one.shares == pytest.approx(turned.shares[::-1], abs=1e-5)) is not ordered


def test_a_group_that_has_answered_nothing_is_not_predicted(embedder: Embedder) -> None:
    model = new_predictor(NeuralProcess(d_model=16, heads=2, feedforward=16), embedder.contract)
    with pytest.raises(TooFewQuestions, match="g"):
        GroupPredictor(model, embedder, "g", [], CPU)
