from dataclasses import replace

import numpy as np
import pytest
import torch
from support.small_survey import small_group

from pluralllm.common.errors.tree import TooFewQuestions
from pluralllm.common.predictor.data import (
    Episode,
    check_enough,
    draw_episode,
    group_data,
    log_softmax_by_question,
    make_batch,
    sharpen,
    step_sizes,
    sum_by_question,
)
from pluralllm.common.words.questions import HoldOut, Question
from pluralllm.common.words.spec import Episodes

EPISODES = Episodes(min_context=4, max_context=8, min_targets=3, max_targets=9)


def test_the_points_of_a_question_are_its_options() -> None:
    data = small_group()
    for number, question in enumerate(data.questions):
        points = data.points([number])
        assert len(points) == len(question.options)
        assert data.shares[points].tolist() == pytest.approx(question.shares, abs=1e-7)
    assert data.points([3, 1]).tolist() == [*data.points([3]), *data.points([1])]


def test_what_is_held_out_is_disjoint_from_training_and_the_same_in_every_group() -> None:
    """PAPER's defects 1 and 5: a test split that overlaps the training split, and two different test splits."""
    one, other = small_group("a", questions=60, seed=1), small_group("b", questions=40, seed=2)
    held_out = {}
    for data in (one, other):
        training, held = data.split(HoldOut(0.25))
        assert not set(training) & set(held)
        assert sorted((*training, *held)) == list(range(len(data.questions)))
        held_out[data.group] = {data.questions[q].id for q in held}
    common = {question.id for question in other.questions}
    assert held_out["a"] & common == held_out["b"] != set()


def test_no_question_is_held_out_when_the_share_is_0() -> None:
    assert small_group().split(HoldOut(0)) == (tuple(range(60)), ())


def test_questions_are_not_lost_in_a_repr() -> None:
    assert repr(small_group("Atlantis")) == "GroupData(60 questions)"


def test_a_group_without_questions_is_refused() -> None:
    with pytest.raises(TooFewQuestions):
        group_data("a", [], [])


@pytest.mark.parametrize("wrong", ["twice", "options", "dimension"])
def test_questions_and_embeddings_that_do_not_fit_are_refused(wrong: str) -> None:
    questions = [Question(text, ("yes", "no"), (0.5, 0.5)) for text in ("one", "one" if wrong == "twice" else "two")]
    second = {"options": (3, 4), "dimension": (2, 5)}.get(wrong, (2, 4))
    with pytest.raises(ValueError, match="twice" if wrong == "twice" else "shape"):
        group_data("a", questions, [np.zeros((2, 4), np.float32), np.zeros(second, np.float32)])


def test_context_and_targets_of_an_episode_are_disjoint_usable_and_within_the_sizes() -> None:
    rng = np.random.default_rng(0)
    usable = range(10, 40)
    sizes = set()
    for _ in range(500):
        episode = draw_episode(usable, EPISODES, rng, rng)
        drawn = (*episode.context, *episode.targets)
        assert len(set(drawn)) == len(drawn)
        assert set(drawn) <= set(usable)
        sizes.add((len(episode.context), len(episode.targets)))
    assert {context for context, _ in sizes} == set(range(4, 9))
    assert {targets for _, targets in sizes} == set(range(3, 10))


@pytest.mark.parametrize("count", [7, 8, 12])
def test_the_upper_ends_shrink_to_what_the_group_has(count: int) -> None:
    rng = np.random.default_rng(0)
    episodes = [draw_episode(range(count), EPISODES, rng, rng) for _ in range(300)]
    assert min(len(episode.context) for episode in episodes) == 4
    assert min(len(episode.targets) for episode in episodes) == 3
    assert max(len(episode.context) for episode in episodes) == min(8, count - 3)
    assert max(len(episode.targets) for episode in episodes) == min(9, count - 4)


def test_too_few_questions_for_an_episode_are_told_with_the_numbers() -> None:
    data = small_group("a", questions=30)
    check_enough(data.group, 7, EPISODES)
    with pytest.raises(TooFewQuestions, match=r"has 6 usable questions.*4 context [+] 3 target.* needs 7"):
        check_enough(data.group, 6, EPISODES)


def test_one_seed_draws_one_sequence_of_episodes() -> None:
    def drawn(seed: int) -> list[Episode]:
        rng = np.random.default_rng(seed)
        return [draw_episode(range(30), EPISODES, rng, rng) for _ in range(5)]

    assert drawn(1) == drawn(1) != drawn(2)


def test_a_batch_holds_each_episode_and_marks_the_padding() -> None:
    data = small_group()
    weighted = replace(data, questions=tuple(replace(q, weight=1.0 + n) for n, q in enumerate(data.questions)))
    short, long = Episode((5, 2), (7,)), Episode((1, 9, 3), (4, 0))
    batch = make_batch([(weighted, short), (weighted, long)])
    assert batch.questions == 2
    for row, episode in enumerate((short, long)):
        context, targets = data.points(episode.context), data.points(episode.targets)
        assert batch.context.is_real[row].tolist() == [True] * len(context) + [False] * (
            batch.context.is_real.shape[1] - len(context)
        )
        assert np.array_equal(batch.context.embeddings[row, : len(context)].numpy(), data.embeddings[context])
        assert np.array_equal(batch.context_shares[row, : len(context)].numpy(), data.shares[context])
        real = batch.targets.is_real[row]
        assert int(real.sum()) == len(targets)
        assert np.array_equal(batch.targets.embeddings[row][real].numpy(), data.embeddings[targets])
        assert np.array_equal(batch.target_shares[row][real].numpy(), data.shares[targets])
        for number, question in enumerate(episode.targets):
            its_points = batch.targets.question[row] == number
            assert int(its_points.sum()) == len(data.questions[question].options)
            assert set(batch.target_weights[row][its_points].tolist()) == {1.0 + question}
        assert set(batch.targets.question[row][~real].tolist()) <= {batch.questions}


def test_a_batch_moves_to_a_device_whole() -> None:
    batch = make_batch([(small_group(), Episode((0, 1), (2,)))]).to(torch.device("meta"))
    assert {
        batch.context.embeddings.device.type,
        batch.targets.question.device.type,
        batch.targets.is_real.device.type,
    } == {"meta"}


def test_the_softmax_is_over_the_options_of_each_question_and_padding_takes_no_share() -> None:
    scores = torch.tensor([[1.0, 2.0, 0.5, 3.0, -1.0, 50.0], [1e4, -1e4, 0.0, 0.0, 0.0, 0.0]])
    question = torch.tensor([[0, 0, 1, 1, 1, 2], [0, 0, 1, 1, 1, 1]])
    shares = log_softmax_by_question(scores, question, 2).exp()
    assert torch.allclose(shares[0, :2], torch.softmax(scores[0, :2], 0))
    assert torch.allclose(shares[0, 2:5], torch.softmax(scores[0, 2:5], 0))
    assert torch.allclose(shares[1], torch.tensor([1, 0, 0.25, 0.25, 0.25, 0.25]))


def test_the_gradient_of_the_softmax_is_torchs_own() -> None:
    scores = torch.randn(1, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    ours = log_softmax_by_question(scores, torch.tensor([[0, 0, 1, 1, 1]]), 1)[0, [0, 3]].sum()
    theirs = torch.log_softmax(scores[0, :2], 0)[0] + torch.log_softmax(scores[0, 2:], 0)[1]
    assert torch.allclose(torch.autograd.grad(ours, scores)[0], torch.autograd.grad(theirs, scores)[0], atol=1e-6)


def test_sharpened_shares_keep_sum_and_order_and_a_power_of_1_changes_nothing() -> None:
    data = small_group()
    sharp, flat, same = sharpen(data, 2.0), sharpen(data, 0.5), sharpen(data, 1.0)
    assert np.allclose(same.shares, data.shares)
    for q in range(len(data.questions)):
        points = data.points([q])
        assert sharp.shares[points].sum() == pytest.approx(1)
        assert np.array_equal(np.argsort(sharp.shares[points]), np.argsort(data.shares[points]))
        assert flat.shares[points].max() <= data.shares[points].max() + 1e-6 <= sharp.shares[points].max() + 2e-6


def test_sums_by_question_leave_the_padding_out() -> None:
    values = torch.tensor([[1.0, 2.0, 4.0, 8.0], [1.0, 2.0, 4.0, 8.0]])
    question = torch.tensor([[0, 0, 1, 2], [0, 1, 1, 1]])
    assert sum_by_question(values, question, 2).tolist() == [[3.0, 4.0], [1.0, 14.0]]


def test_the_sizes_of_a_steps_episodes_are_alike_whatever_the_group() -> None:
    for step in range(20):
        sizes = {
            (len(episode.context), len(episode.targets))
            for client, count in enumerate((40, 60, 200))
            for episode in [draw_episode(range(count), EPISODES, step_sizes(7, step), np.random.default_rng(client))]
        }
        assert len(sizes) == 1


def test_embeddings_that_lie_one_after_the_other_are_not_copied() -> None:
    questions = [Question("A?", ("x", "y"), (0.5, 0.5)), Question("B?", ("x", "y", "z"), (0.2, 0.3, 0.5))]
    whole = np.arange(20, dtype=np.float32).reshape(5, 4)
    parts = np.split(whole, [2])
    assert np.shares_memory(group_data("g", questions, parts).embeddings, whole)
    other_order = [np.ascontiguousarray(whole[3:5]), *np.split(whole, [2])[1:]]
    turned = group_data("g", questions, other_order).embeddings
    assert not np.shares_memory(turned, whole)
    assert np.array_equal(turned, np.concatenate(other_order))
    backwards = np.split(whole, [3])[::-1]  # of one array, in another order
    assert np.array_equal(group_data("g", questions, backwards).embeddings, np.concatenate(backwards))
