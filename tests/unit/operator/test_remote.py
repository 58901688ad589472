"""The plain values that the operator's calls return."""

from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest

from pluralllm.common.errors.tree import AnswerInvalid
from pluralllm.common.trust.identity import Membership, next_key, save_identity, stored_addresses
from pluralllm.common.words.addresses import Addresses
from pluralllm.common.words.ids import ClientId
from pluralllm.common.words.not_reported import NotReported, not_reported_text
from pluralllm.common.words.roles import MemberRole
from pluralllm.operator.remote import Remote, plain
from pluralllm.server.members.authority import create_authority
from pluralllm.v1 import resources_pb2 as pb
from pluralllm.v1.enrolment_pb2 import RenewResponse

NOW_S = 1_800_000_000.0


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


@pytest.mark.parametrize("false", ["a..b:1", "0.0.0.0:1", "https://x:1", ""])
def test_a_renewal_with_a_false_address_is_refused_and_changes_no_file(tmp_path: Path, false: str) -> None:
    authority = create_authority(tmp_path / "authority", "fed", ["x"], None, NOW_S)
    key = next_key(tmp_path / "ann")
    member = Membership(
        federation="fed", name=ClientId("ann"), role=MemberRole.ADMIN, coordinator="x:1", enrolment="x:2"
    )
    chain = authority.issue_member(key.public_key(), "ann", MemberRole.ADMIN, 86_400.0, NOW_S)
    identity = save_identity(tmp_path / "ann", member, authority.root_pem, key, chain)
    remote = Remote("x:1", grpc.insecure_channel("127.0.0.1:1"), identity)
    told = pb.Addresses(coordinator=false, enrolment="x:2")
    answer = RenewResponse(certificate_chain_pem=chain, addresses=told)
    remote._enrolment = SimpleNamespace(Renew=lambda _request, timeout: answer)
    with pytest.raises(AnswerInvalid):
        remote.renewed()
    assert stored_addresses(identity.folder) == Addresses("x:1", "x:2")
    remote.close()
