from pathlib import Path

import numpy as np
import pytest

from pluralllm.client import data_commands
from pluralllm.client.data.private_data import check_file, write_group
from pluralllm.client.data.sample_survey import GROUPS, MOST_GROUPS, MOST_QUESTIONS, USUAL_QUESTIONS, sample_groups
from pluralllm.client.disclosure.policy import Policy
from pluralllm.common.words.questions import HoldOut
from pluralllm.common.words.spec import PRESETS, preset_values

pytestmark = pytest.mark.seconds


def test_one_seed_is_one_survey_and_groups_differ() -> None:
    one, again, other = sample_groups(8, 120, 0), sample_groups(8, 120, 0), sample_groups(8, 120, 1)
    assert one == again != other
    assert list(one) == list(GROUPS)


def test_more_groups_leave_the_first_as_they_are() -> None:
    few, many = sample_groups(8, 40, 0), sample_groups(MOST_GROUPS, 40, 0)
    assert len(many) == MOST_GROUPS
    assert dict(list(many.items())[:8]) == few


def test_every_file_is_canonical_and_some_questions_are_ordinal(tmp_path: Path) -> None:
    for name, questions in sample_groups(8, MOST_QUESTIONS, 0).items():
        write_group(tmp_path / "g.jsonl", questions)
        checked = check_file(tmp_path / "g.jsonl")
        assert not checked.problems, name
        assert len(checked.questions) == MOST_QUESTIONS
        assert 0 < sum(question.scale is not None for question in questions) < MOST_QUESTIONS


def test_groups_with_opposed_values_answer_differently() -> None:
    groups = {str(name): {q.id: q.shares for q in found} for name, found in sample_groups(8, MOST_QUESTIONS, 0).items()}

    def distance(one: str, other: str) -> float:
        pairs = [(groups[one][key], groups[other][key]) for key in groups[one]]
        return float(np.mean([np.abs(np.subtract(p, q)).sum() for p, q in pairs]))

    assert distance("Old Valley", "Harbourland") > 1.5 * distance("Old Valley", "Stonebridge")


def test_a_survey_that_cannot_be_had_is_refused_with_numbers() -> None:
    with pytest.raises(ValueError, match="2 to 64 groups, not 65"):
        sample_groups(MOST_GROUPS + 1, 10, 0)
    with pytest.raises(ValueError, match="2 to 312 questions"):
        sample_groups(2, 1_000, 0)


def test_the_command_has_the_bounds_of_the_survey() -> None:
    assert data_commands.MOST_GROUPS == MOST_GROUPS
    assert data_commands.MOST_QUESTIONS == MOST_QUESTIONS
    assert data_commands.USUAL_QUESTIONS == USUAL_QUESTIONS


@pytest.mark.parametrize("preset", [preset for preset in PRESETS if preset != "paper"])
def test_every_group_of_the_usual_size_may_report_its_score_under_the_default_policy(preset: str) -> None:
    share = preset_values(preset)["evaluation"]["holdout_share"]
    assert share == 0.2
    for name, questions in sample_groups(MOST_GROUPS, USUAL_QUESTIONS, 0).items():
        withheld = sum(HoldOut(share).includes(question) for question in questions)
        assert withheld >= Policy().min_questions_behind, name
