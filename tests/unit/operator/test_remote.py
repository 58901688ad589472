"""The plain values that the operator's calls return."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest

from pluralllm.common.errors.tree import AnswerInvalid, OverLimit
from pluralllm.common.trust.identity import Membership, next_key, save_identity, stored_addresses
from pluralllm.common.weights.pieces import transfer_s
from pluralllm.common.wire.messages import MAX_MESSAGE_BYTES
from pluralllm.common.words.addresses import Addresses
from pluralllm.common.words.ids import ClientId
from pluralllm.common.words.names import ModelName
from pluralllm.common.words.not_reported import NotReported, not_reported_text
from pluralllm.common.words.roles import MemberRole
from pluralllm.common.words.spec import RunSpec
from pluralllm.operator.plain_values import plain
from pluralllm.operator.remote import CALL_DEADLINE_S, MAX_PAGES, PAGE_SIZE, Remote
from pluralllm.server.members.authority import create_authority
from pluralllm.v1 import operations_pb2
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


@pytest.mark.parametrize(
    ("address", "token"),
    [("evil.example/x:1", "t" * 43), ("", "t" * 43), ("x:1", "t" * 42), ("x:1", "t" * 42 + "\n"), ("x:1", "")],
)
def test_a_link_to_the_page_that_breaks_the_protocol_is_not_printed(address: str, token: str) -> None:
    remote = Remote("x:1", grpc.insecure_channel("127.0.0.1:1"), None)
    answers = iter([("x:1", "t" * 43), (address, token)])

    def answer(_request: object, timeout: float) -> operations_pb2.CreatePageLinkResponse:
        host, secret = next(answers)
        return operations_pb2.CreatePageLinkResponse(address=host, token=secret)

    remote._operations = SimpleNamespace(CreatePageLink=answer)
    assert remote.page_link() == f"https://x:1/enter#{'t' * 43}"
    with pytest.raises(AnswerInvalid):
        remote.page_link()
    remote.close()


@pytest.mark.parametrize(
    ("method", "call"),
    [
        ("GetRun", lambda remote: remote.get_run("r")),
        ("StartRun", lambda remote: remote.start_run("r")),
        ("CancelRun", lambda remote: remote.cancel_run("r", "")),
        ("GetModel", lambda remote: remote.model_record(ModelName.parse_short("r@0"))),
    ],
)
def test_an_answer_that_may_be_large_has_time_on_the_slowest_link(
    method: str, call: Callable[[Remote], object]
) -> None:
    deadlines_s: list[float] = []

    def answer(_request: object, timeout: float) -> SimpleNamespace:
        deadlines_s.append(timeout)
        sized = SimpleNamespace(size_bytes=1)
        answers = {"run": pb.Run(), "model": pb.ModelVersion(), "manifest": sized, "spec_json": b""}
        return SimpleNamespace(**answers, next_participants_page_token="")

    remote = Remote("x:1", grpc.insecure_channel("127.0.0.1:1"), None)
    remote._operations = SimpleNamespace(**{method: answer})
    call(remote)
    remote.close()
    assert deadlines_s[0] >= CALL_DEADLINE_S + transfer_s(MAX_MESSAGE_BYTES)


class PagedRun:
    """A coordinator whose run has some participants, in pages of two."""

    def __init__(self, number: int) -> None:
        self.people = [f"client-{position}" for position in range(number)]
        self.names: list[str] = []

    def GetRun(self, request: operations_pb2.GetRunRequest, timeout: float) -> operations_pb2.GetRunResponse:  # noqa: N802
        self.names.append(request.name)
        first = int(request.participants_page_token or 0)
        page = [pb.Participant(client=name) for name in self.people[first : first + 2]]
        token = str(first + 2) if first + 2 < len(self.people) else ""
        run = pb.Run(name="runs/newest", participants=page)
        return operations_pb2.GetRunResponse(run=run, next_participants_page_token=token)


@pytest.mark.parametrize("number", [0, 1, 2, 5])
def test_a_run_has_the_participants_of_all_pages(number: int) -> None:
    remote, coordinator = Remote.in_plain_text("127.0.0.1:1"), PagedRun(number)
    remote._operations = coordinator
    run = remote.get_run("-")
    assert [person["client"] for person in run["participants"]] == coordinator.people
    assert set(coordinator.names[1:]) <= {"runs/newest"}, "the newest run may be another one by now"


def test_a_run_with_pages_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pluralllm.operator.remote.MAX_PAGES", 3)
    remote = Remote.in_plain_text("127.0.0.1:1")
    remote._operations = PagedRun(100)
    with pytest.raises(OverLimit):
        remote.get_run("-")


class PagedRounds:
    """A coordinator whose run has some rounds, in pages as large as they are asked for."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.sizes: list[int] = []  # of the pages that were asked for
        self.summaries: list[bool] = []

    def ListRounds(  # noqa: N802
        self, request: operations_pb2.ListRoundsRequest, timeout: float
    ) -> operations_pb2.ListRoundsResponse:
        self.sizes.append(request.page_size)
        self.summaries.append(request.summary)
        left = int(request.page_token or self.number)
        after = max(0, left - request.page_size)
        page = [pb.Round(name=f"runs/r/rounds/{number}") for number in range(left, after, -1)]
        return operations_pb2.ListRoundsResponse(rounds=page, next_page_token=str(after or ""))


def test_all_rounds_of_a_run_are_read_unless_a_limit_is_given() -> None:
    remote = Remote.in_plain_text("127.0.0.1:1")
    remote._operations = coordinator = PagedRounds(450)
    assert [row["name"] for row in remote.rounds("r")] == [f"runs/r/rounds/{number}" for number in range(450, 0, -1)]
    assert [row["name"] for row in remote.rounds("r", 2)] == ["runs/r/rounds/450", "runs/r/rounds/449"]
    assert remote.rounds("r", 300)[-1]["name"] == "runs/r/rounds/151"
    assert coordinator.sizes == [PAGE_SIZE] * 3 + [2] + [PAGE_SIZE] * 2
    most = RunSpec.model_json_schema()["properties"]["rounds"]["maximum"] + 1  # with a closing round
    assert most <= MAX_PAGES * PAGE_SIZE, "no run has more rounds than the pages that are read"


def test_numbers_of_clients_are_counted_where_an_earlier_release_gives_only_the_lists() -> None:
    class Earlier:
        def ListRounds(  # noqa: N802
            self, request: operations_pb2.ListRoundsRequest, timeout: float
        ) -> operations_pb2.ListRoundsResponse:
            lists = {"cohort": ["ann", "ben"], "receipts": [pb.Receipt(client="ann")]}
            numbers = {"cohort_size": 3, "updates": 2}
            page = [pb.Round(name="runs/r/rounds/2", **lists), pb.Round(name="runs/r/rounds/1", **numbers)]  # type: ignore[arg-type]
            return operations_pb2.ListRoundsResponse(rounds=page)

    remote = Remote.in_plain_text("127.0.0.1:1")
    remote._operations = Earlier()
    assert [(row["cohort_size"], row["updates"]) for row in remote.rounds("r", summary=True)] == [(2, 1), (3, 2)]
    remote._operations = coordinator = PagedRounds(1)
    remote.rounds("r")
    remote.rounds("r", summary=True)
    assert coordinator.summaries == [False, True]


class Archive:
    """A coordinator that notes what it is asked for."""

    def __init__(self) -> None:
        self.requests: list[object] = []

    def ListRuns(self, request: operations_pb2.ListRunsRequest, timeout: float) -> operations_pb2.ListRunsResponse:  # noqa: N802
        self.requests.append(request)
        return operations_pb2.ListRunsResponse(next_page_token="" if request.page_token else "1")

    def ArchiveRun(  # noqa: N802
        self, request: operations_pb2.ArchiveRunRequest, timeout: float
    ) -> operations_pb2.ArchiveRunResponse:
        self.requests.append(request)
        return operations_pb2.ArchiveRunResponse(run=pb.Run(name=request.name, archived=True))

    def UnarchiveRun(  # noqa: N802
        self, request: operations_pb2.UnarchiveRunRequest, timeout: float
    ) -> operations_pb2.UnarchiveRunResponse:
        self.requests.append(request)
        return operations_pb2.UnarchiveRunResponse(run=pb.Run(name=request.name))


def test_archived_runs_are_asked_for_on_each_page_of_the_list() -> None:
    remote = Remote.in_plain_text("127.0.0.1:1")
    remote._operations = archive = Archive()
    for asked in ({}, {"archived": True}):
        remote.runs(**asked)
    shown = [
        request.show_archived for request in archive.requests if isinstance(request, operations_pb2.ListRunsRequest)
    ]
    assert shown == [False, False, True, True]


def test_only_a_runs_own_name_archives_it_so_that_the_same_call_again_archives_no_other_run() -> None:
    remote = Remote.in_plain_text("127.0.0.1:1")
    remote._operations = archive = Archive()
    assert [remote.archive_run("r")["archived"], remote.unarchive_run("r")["archived"]] == [True, False]
    remote.archive_run("-"), remote.unarchive_run("-")
    assert [getattr(request, "name", "") for request in archive.requests] == ["runs/r", "runs/r", "runs/-", "runs/-"]
