"""A client's answers are the terms of the sums that the solver needs, from the questions that it trains on alone."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.small_survey import SUMS, small_group, small_spec

from pluralllm.client.work import sums
from pluralllm.client.work.sums import GroupTerms, answer_sums, centred
from pluralllm.common.errors.tree import NotFinite, WrongLayout
from pluralllm.common.predictor.architecture import layout_for, update_layout, version_layout
from pluralllm.common.predictor.data import GroupData, make_points
from pluralllm.common.predictor.model import new_predictor
from pluralllm.common.weights.layout import layout_of, read_layout, tensors_of, write_weights

CPU = torch.device("cpu")
SPEC, DATA = small_spec(SUMS), small_group(questions=40)
USABLE, WITHHELD = DATA.split(SPEC.held_out)
FEATURES, RANK = 24, 3
rng = np.random.default_rng(3)
PRIOR = rng.normal(size=FEATURES).astype(np.float32)
PROJECTION = rng.normal(size=(RANK, FEATURES)).astype(np.float32)


def system() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns the centred features and the centred logarithms of the group's training questions, in double precision."""
    points = make_points([(DATA, USABLE)])
    with torch.no_grad():
        h = new_predictor(SPEC.predictor, SPEC.embedding).embed(points)[0].double().numpy()
    logs = np.log(DATA.shares[DATA.points(USABLE)].astype(np.float64) + 0.01)
    question = points.question[0].numpy()
    means = np.stack([question == number for number in question]) / np.bincount(question)[question][:, None]
    return h - means @ h, logs - means @ logs


def terms(data: GroupData = DATA) -> GroupTerms:
    return GroupTerms(SPEC, data, CPU)


@pytest.mark.parametrize("answers", ["as they are", "one option", "two options"])
def test_no_answer_is_longer_than_the_features_and_the_number_of_questions_allow(answers: str) -> None:
    """The bounds of the module's docstring, also for answers that are as extreme as shares can be."""
    shares = DATA.shares.copy()
    for start, end in itertools.pairwise(DATA.offsets.tolist()):
        if answers != "as they are":
            shares[start:end] = 0
            chosen = slice(start, start + (1 if answers == "one option" else 2))
            shares[chosen] = 1 / (chosen.stop - start)
    group = terms(GroupData(DATA.group, DATA.questions, DATA.embeddings, shares, DATA.offsets, DATA.positions))
    points, questions = group._logs.size, len(USABLE)
    residual = np.sqrt(65 * questions)
    assert np.linalg.norm(group._logs) <= residual
    assert np.linalg.norm(group.of_prior(np.zeros(FEATURES, np.float32))[0]) <= np.sqrt(2 * 1.6 * points) * residual
    own = group._own_vector(np.zeros(FEATURES, np.float32))
    assert np.linalg.norm(own) <= np.linalg.norm(group._logs)
    length = np.linalg.norm(group.of_projection(np.zeros(FEATURES, np.float32), PROJECTION))
    assert length <= np.linalg.norm(PROJECTION) * float(own @ own) * (1 + 1e-6)
    extreme = np.log1p(np.linspace(0, 100, 100_001)[1:]) ** 2 / np.linspace(0, 100, 100_001)[1:]
    assert extreme.max() < 0.65, "so the square length of one question's logarithms is at most 65"


def write_version(path: Path, **tensors: NDArray[np.float32]) -> Path:
    named = {f"head.{name}": values for name, values in sorted(tensors.items())}
    layout = layout_of((name, values.shape) for name, values in named.items())
    write_weights(path, layout, [values.ravel() for values in named.values()])
    return path


def test_the_answer_of_the_first_stage_is_the_gradient_of_the_groups_part() -> None:
    h, logs = system()
    answer, mean_square = terms().of_prior(PRIOR)
    residual = logs - h @ PRIOR
    assert answer.dtype == np.float32
    assert np.allclose(answer, h.T @ residual, atol=1e-5)
    assert mean_square == pytest.approx(float(residual @ residual) / len(logs), rel=1e-5)


def test_withheld_questions_count_in_no_answer() -> None:
    shares = DATA.shares.copy()
    withheld = DATA.points(WITHHELD)
    shares[withheld] = shares[withheld][::-1]
    changed = GroupData(DATA.group, DATA.questions, DATA.embeddings, shares, DATA.offsets, DATA.positions)
    assert np.array_equal(terms(changed).of_prior(PRIOR)[0], terms().of_prior(PRIOR)[0])
    assert terms().questions == len(USABLE)


def test_the_answer_of_the_second_stage_is_the_projected_likeness_of_the_groups_own_vector() -> None:
    h, logs = system()
    own = h.T @ np.linalg.inv(h @ h.T + 0.25 * np.eye(len(h))) @ (logs - h @ PRIOR)
    answer = terms().of_projection(PRIOR, PROJECTION)
    assert np.allclose(answer, PROJECTION @ np.outer(own, own), atol=1e-4 * np.abs(answer).max())


def test_the_own_vector_follows_the_prior() -> None:
    made = terms()
    first = made.of_projection(PRIOR, PROJECTION)
    assert np.array_equal(made.of_projection(PRIOR, PROJECTION), first)
    assert not np.allclose(made.of_projection(PRIOR * 2, PROJECTION), first)


@pytest.mark.parametrize(("points", "is_zero"), [(1, True), (0, False)])
def test_a_group_with_too_few_points_answers_zeros_in_the_second_stage(
    monkeypatch: pytest.MonkeyPatch, points: int, is_zero: bool
) -> None:
    monkeypatch.setattr(sums, "LEAST_POINTS", len(DATA.points(USABLE)) + points)
    assert bool((terms().of_projection(PRIOR, PROJECTION) == 0).all()) is is_zero
    assert terms().of_prior(PRIOR)[0].any()


def test_blocks_and_features_that_are_not_kept_give_the_same_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, once = terms(), terms().of_prior(PRIOR)[0]
    own = whole.of_projection(PRIOR, PROJECTION)
    monkeypatch.setattr(sums, "BLOCK_POINTS", 7)
    monkeypatch.setattr(sums, "KEPT_BYTES", 1000)
    small = terms()
    assert np.allclose(small.of_prior(PRIOR)[0], once, atol=1e-5)
    assert np.allclose(small.of_prior(PRIOR)[0], once, atol=1e-5), "the second time as the first"
    assert np.allclose(small.of_projection(PRIOR, PROJECTION), own, atol=1e-4)


def test_features_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made, computed = terms(), []
    original = made._centred_features

    def counted(questions: list[int]) -> NDArray[np.float32]:
        computed.append(questions)
        return original(questions)

    monkeypatch.setattr(made, "_centred_features", counted)
    for _ in range(3):
        made.of_prior(PRIOR)
    assert len(computed) == 1


def test_the_regression_takes_no_more_points_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sums, "BLOCK_POINTS", 7)
    all_points = terms().of_projection(PRIOR, PROJECTION)
    monkeypatch.setattr(sums, "MOST_POINTS", 60)
    assert not np.allclose(terms().of_projection(PRIOR, PROJECTION), all_points)


def answers(folder: Path, **tensors: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    steps: list[tuple[int, int]] = []
    base, out = write_version(folder / "base", **tensors), folder / "out"
    trained = answer_sums(base, out, SPEC, terms(), lambda done, total: steps.append((done, total)))
    assert steps == [(0, 1), (1, 1)]
    assert (trained.examples, trained.target_questions, trained.steps) == (len(USABLE), len(USABLE), 1)
    assert trained.first_target_questions == 0, "there is no distance of the base"
    assert trained.manifest.size_bytes == out.stat().st_size
    return tensors_of(out)


def stages() -> Iterator[tuple[int, dict[str, NDArray[np.float32]]]]:
    yield 0, {"prior": PRIOR}
    yield 6, {"prior": PRIOR, "group_projection": PROJECTION}


@pytest.mark.parametrize(("version", "tensors"), list(stages()))
def test_the_file_of_an_answer_has_the_layout_that_the_coordinator_expects(
    tmp_path: Path, version: int, tensors: dict[str, NDArray[np.float32]]
) -> None:
    answers(tmp_path, **tensors)
    assert read_layout(tmp_path / "base") == version_layout(SPEC, version)
    assert read_layout(tmp_path / "out") == update_layout(SPEC, version)


def test_the_file_holds_the_answer(tmp_path: Path) -> None:
    (sent,) = answers(tmp_path, prior=PRIOR).values()
    assert np.array_equal(sent, terms().of_prior(PRIOR)[0])
    (sent,) = answers(tmp_path, prior=PRIOR, group_projection=PROJECTION).values()
    assert np.array_equal(sent, terms().of_projection(PRIOR, PROJECTION))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_version_that_is_not_finite_is_refused(tmp_path: Path, bad: float) -> None:
    values = PRIOR.copy()
    values[3] = bad
    base = write_version(tmp_path / "base", prior=values)
    with pytest.raises(NotFinite, match=r"head\.prior"):
        answer_sums(base, tmp_path / "out", SPEC, terms(), lambda _done, _all: None)
    assert not (tmp_path / "out").exists()


def test_a_version_with_other_tensors_is_refused(tmp_path: Path) -> None:
    base = write_version(tmp_path / "base", group_projection=PROJECTION)
    assert read_layout(base) != layout_for(SPEC)
    with pytest.raises(WrongLayout):
        answer_sums(base, tmp_path / "out", SPEC, terms(), lambda _done, _all: None)


def test_the_mean_of_each_question_is_subtracted() -> None:
    values, sizes = np.array([1.0, 3.0, 5.0, 5.0, 8.0]), np.array([2, 3])
    assert np.array_equal(centred(values, sizes), [-1, 1, -1, -1, 2])
    assert np.array_equal(centred(np.stack([values, 2 * values], 1), sizes)[:, 1], [-2, 2, -2, -2, 4])
