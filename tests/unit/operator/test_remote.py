"""The plain values that the operator's calls return."""

import pytest

from pluralllm.common.words.not_reported import NotReported, not_reported_text
from pluralllm.operator.remote import plain
from pluralllm.v1 import resources_pb2 as pb


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (pb.NOT_REPORTED_TOO_FEW_QUESTIONS, NotReported.TOO_FEW_QUESTIONS),
        (pb.NOT_REPORTED_BUDGET_SPENT, NotReported.BUDGET_SPENT),
    ],
)
def test_scores_that_are_not_reported_are_none_and_never_0(
    number: "pb.NotReported.ValueType", reason: NotReported
) -> None:
    run = pb.Run(evaluations=[pb.GroupEvaluation(group="G", not_reported=number)])
    (score,) = plain(run)["evaluations"]
    assert (score["alignment_score"], score["alignment_score_base2"], score["wasserstein_score"]) == (None, None, None)
    assert (score["questions"], score["not_reported"]) == (0, reason.value)


def test_a_reported_score_of_0_is_0() -> None:
    score = plain(pb.GroupEvaluation(group="G", questions=40))
    assert (score["alignment_score"], score["alignment_score_base2"]) == (0.0, 0.0)
    assert score["not_reported"] == "unspecified"


def test_a_client_without_an_update_in_the_newest_version_has_no_weight() -> None:
    assert plain(pb.Participant(client="ann"))["weight"] is None
    assert plain(pb.Participant(client="ann", weight=0.0))["weight"] == 0.0


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        (NotReported.TOO_FEW_QUESTIONS, "not reported: too few questions"),
        (NotReported.BUDGET_SPENT, "not reported: budget spent"),
    ],
)
def test_the_text_in_place_of_a_score_names_the_reason(reason: NotReported, text: str) -> None:
    assert not_reported_text(reason) == text
