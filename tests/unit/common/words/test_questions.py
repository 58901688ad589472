"""The position of an option among the options of its question."""

import pytest

from pluralllm.common.rewards.rollout_batch import Candidates
from pluralllm.common.words.questions import Question


@pytest.mark.parametrize(
    ("options", "is_ordered", "positions"),
    [
        (("a",), True, (0.0,)),
        (("a", "b"), True, (0.0, 1.0)),
        (("a", "b", "c", "d", "e"), True, (0.0, 0.25, 0.5, 0.75, 1.0)),
        (("a", "b", "c"), False, (0.0, 0.0, 0.0)),
    ],
)
def test_positions_go_from_0_to_1_and_options_without_an_order_have_equal_ones(
    options: tuple[str, ...], is_ordered: bool, positions: tuple[float, ...]
) -> None:
    question = Question("q", options, (1 / len(options),) * len(options), is_ordered=is_ordered)
    assert question.positions == positions


def test_candidates_of_a_reward_run_have_no_order() -> None:
    assert Candidates("prompt", ("one", "two")).to_question().positions == (0.0, 0.0)
