"""The table of methods: scores, confidence intervals over questions, and differences."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from pluralllm.experiment.results import ContextScores, QuestionKind, Result, Scores, question_number
from pluralllm.experiment.summary import (
    Estimate,
    Line,
    Selection,
    difference,
    left_out,
    over_how_many,
    population,
    question_weights,
    table,
    tally_of,
    unevenness,
)

Row = tuple[str, QuestionKind, float]  # question, its kind, distance
ANSWERED, UNANSWERED, WITHHELD = QuestionKind.ANSWERED, QuestionKind.UNANSWERED, QuestionKind.WITHHELD


def scores(group: str, draws: Sequence[Sequence[Row]], group_part: str = "test", context: int = 20) -> Scores:
    rows = [row for draw in draws for row in draw]
    return Scores(
        group,
        group_part,
        context,
        np.repeat(np.arange(len(draws)), [len(draw) for draw in draws]),
        np.array([question_number(question) for question, _, _ in rows]),
        np.array([kind for _, kind, _ in rows], dtype="U1"),
        np.array([distance for _, _, distance in rows]),
        np.full(len(rows), np.nan),
        np.zeros(len(rows)),
    )


def result(method: str, *found: Scores, seed: int = 0) -> Result:
    return Result({"method": method, "seed": seed}, (), found, ())


def alike(method: str, groups: Sequence[str], distances: dict[str, float], shift: float = 0.0, seed: int = 0) -> Result:
    """Returns a result in which every group has the same distances."""
    rows = [(question, ANSWERED, distance + shift) for question, distance in distances.items()]
    return result(method, *(scores(group, [rows]) for group in groups), seed=seed)


DISTANCES = {f"q{number}": 0.1 + 0.2 * (number % 5) / 4 for number in range(50)}


def test_a_score_is_one_minus_the_mean_distance_over_rows_of_all_draws() -> None:
    found = result("a", scores("g", [[("x", ANSWERED, 0.1), ("y", ANSWERED, 0.3)], [("x", ANSWERED, 0.2)]]))
    assert table([found], Selection())[0].mean.value == pytest.approx(1 - 0.2)


def test_the_worst_group_is_named_and_lines_are_best_first() -> None:
    good = result("good", scores("g", [[("x", ANSWERED, 0.1)]]), scores("h", [[("x", ANSWERED, 0.2)]]))
    bad = result("bad", scores("g", [[("x", ANSWERED, 0.3)]]), scores("h", [[("x", ANSWERED, 0.3)]]))
    lines = table([bad, good], Selection())
    assert [(line.method, line.worst_group) for line in lines] == [("good", "h"), ("bad", "g")]
    assert lines[0].worst.value == pytest.approx(0.8)


def test_a_question_is_resampled_in_all_groups_at_once() -> None:
    """Groups that fail on the same questions must not narrow the interval of the mean."""
    one = table([alike("a", ["g"], DISTANCES)], Selection())[0].mean
    many = table([alike("a", [f"g{n}" for n in range(10)], DISTANCES)], Selection())[0].mean
    assert (many.low, many.high) == pytest.approx((one.low, one.high))


def test_seeds_of_one_question_are_not_more_questions() -> None:
    one = table([alike("a", ["g"], DISTANCES)], Selection())[0].mean
    five = table([alike("a", ["g"], DISTANCES, seed=seed) for seed in range(5)], Selection())[0]
    assert (five.mean.low, five.mean.high) == pytest.approx((one.low, one.high))
    assert (five.seeds, five.questions) == (5, 50)
    assert five.seed_deviation == pytest.approx(0.0)


def test_the_interval_is_as_wide_as_the_standard_error_says() -> None:
    values = np.random.default_rng(1).normal(0.3, 0.1, 400)
    found = table([alike("a", ["g"], {f"q{n}": float(v) for n, v in enumerate(values)})], Selection())[0].mean
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.1 / 20, rel=0.15)
    assert found.low < found.value < found.high


def test_a_difference_is_surer_than_the_two_scores_it_is_between() -> None:
    results = [alike("a", ["g", "h"], DISTANCES), alike("b", ["g", "h"], DISTANCES, shift=0.01)]
    found = difference(results, "a", "b", Selection())
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((0.01, 0.01, 0.01))
    uneven = difference(results, "a", "b", Selection(), unevenness)
    assert uneven is not None
    assert uneven.value == pytest.approx(0.0)


def test_a_difference_needs_the_same_groups() -> None:
    results = [alike("a", ["g", "h"], DISTANCES), alike("b", ["g"], DISTANCES)]
    assert difference(results, "a", "b", Selection()) is None
    assert difference(results, "a", "nobody", Selection()) is None


def test_each_kind_of_question_has_a_score_and_a_groups_own_leaves_the_withheld_out() -> None:
    scored = result("a", scores("g", [[("x", ANSWERED, 0.1), ("y", UNANSWERED, 0.4), ("z", WITHHELD, 0.7)]]))
    for kind, score in ((ANSWERED, 0.9), (UNANSWERED, 0.6), (WITHHELD, 0.3)):
        assert table([scored], Selection(kinds=(kind,)))[0].mean.value == pytest.approx(score)
    assert table([scored], Selection())[0].mean.value == pytest.approx(0.75)


def test_training_groups_are_scored_on_withheld_questions() -> None:
    found = result("a", scores("g", [[("z", WITHHELD, 0.2)]], group_part="train"))
    assert table([found], Selection("train"))[0].mean.value == pytest.approx(0.8)


def test_groups_too_small_for_a_context_are_named() -> None:
    results = [result("a", scores("big", [[("x", ANSWERED, 0.1)]], context=size)) for size in (20, 40)]
    results.append(result("b", scores("small", [[("x", ANSWERED, 0.1)]], context=20)))
    assert left_out(results, "test", 40) == ("small",)
    assert left_out(results, "test", 20) == ()


def test_only_the_first_draws_can_be_looked_at() -> None:
    found = result("a", scores("g", [[("x", ANSWERED, 0.1)], [("y", ANSWERED, 0.5)]]))
    tally = tally_of([found], Selection(draws=1), population([found], Selection()))
    assert tally is not None
    assert tally.scores() == pytest.approx([0.9])


def test_a_method_without_groups_of_the_part_has_no_line() -> None:
    found = [result("a", scores("g", [[("x", ANSWERED, 0.1)]], group_part="train")), alike("b", ["h"], DISTANCES)]
    assert [line.method for line in table(found, Selection())] == ["b"]
    assert table(found, Selection(context=5)) == []


def test_the_same_results_give_the_same_intervals() -> None:
    results = [alike("a", ["g"], DISTANCES), alike("b", ["g"], DISTANCES, shift=0.1)]
    assert table(results, Selection()) == table(results[::-1], Selection())
    assert (question_weights(50).sum(1) == 50).all()


def test_seeds_that_differ_have_a_deviation() -> None:
    results = [alike("a", ["g"], DISTANCES, shift=0.01 * seed, seed=seed) for seed in range(3)]
    assert table(results, Selection())[0].seed_deviation == pytest.approx(0.01)
    assert table(results[:1], Selection())[0].seed_deviation is None


@pytest.mark.parametrize(("gain", "ignores"), [(0.0051, False), (0.0049, True), (-0.2, True)])
def test_a_line_has_the_context_gain_of_its_part_and_size_and_says_when_the_context_does_not_matter(
    gain: float, ignores: bool
) -> None:
    seeds = [
        replace(
            alike("a", ["g"], DISTANCES, seed=seed),
            gains=(
                ContextScores("g", "test", 20, 0.8, 0.8 - gain + shift),
                ContextScores("h", "test", 20, 0.7, 0.7 - gain - shift),
                ContextScores("g", "test", 5, 0.9, 0.1),
                ContextScores("g", "train", 20, 0.9, 0.1),
            ),
        )
        for seed, shift in enumerate((0.1, 0.02))
    ]
    (line,) = table(seeds, Selection())
    assert line.context_gain == pytest.approx(gain)
    assert line.ignores_context is ignores
    (baseline,) = table([alike("uniform", ["g"], DISTANCES)], Selection())
    assert (baseline.context_gain, baseline.ignores_context) == (None, False)


def test_means_say_over_how_many_groups_they_are() -> None:
    estimate = Estimate(0.5, 0.4, 0.6)

    def line(*groups: str) -> Line:
        of_groups = dict.fromkeys(groups, estimate)
        return Line("m", 1, 9, estimate, estimate, "a", estimate, estimate, of_groups, (0.5,), None)

    assert over_how_many([line("a", "b"), line("a", "b")]) == "over 2 groups"
    assert over_how_many([line("a", "b"), line("a")]) == "over 1 or 2 groups"
    assert over_how_many([line("a")]) == "over 1 group"
