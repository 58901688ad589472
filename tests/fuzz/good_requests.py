"""A request for each call that is accepted, and for each field of a request the real values that it may have."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fuzz.messages import spoilt_json
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from pluralllm.common.weights.chunks import Manifest
from pluralllm.common.wire.messages import PROTOCOL_MAX, PROTOCOL_MIN, manifest_message
from pluralllm.v1 import enrolment_pb2 as en
from pluralllm.v1 import federation_pb2 as fed
from pluralllm.v1 import operations_pb2 as ops
from pluralllm.v1 import resources_pb2 as res

TRAINERS = ("ann", "ben", "cat")  # ann sends updates; ben and cat never deliver, so the round stays open
SCORER = "eve"  # in a run of her own that waits for her score
RATER = "rae"  # in a reward run of her own whose batch waits for her
GUEST = "guest"  # has an open invite
OTHERS = ("olga", "admin", "nobody")


@dataclass(frozen=True, slots=True)
class Situation:
    """The facts that a caller may know about a coordinator at one moment."""

    run: str  # its round is open
    scored_run: str
    scored_task: str
    rated_run: str
    rated_task: str
    rollouts_json: bytes  # the batch in progress
    next_run: str  # does not exist yet
    ended_run: str
    task: fed.Task  # ann's task in the open round
    manifest: Manifest  # the manifest of an update for that task
    update: bytes
    spec_json: bytes
    generation: str
    token: str
    requests_der: tuple[bytes, bytes]  # for certificates of the guest's key and of ann's next key
    chain_pem: bytes  # ann's


def real_values(now: Situation, field: str) -> Sequence[Any]:
    """Returns the real values for a field of this name; a strategy among them makes values that are nearly real."""
    runs = [now.run, now.scored_run, now.rated_run, now.next_run, now.ended_run, "run-0001", "-"]
    tasks = [f"runs/{now.run}/rounds/1/tasks/{kind}-{name}" for kind in ("train", "evaluate") for name in TRAINERS]
    names = [f"runs/{run}{suffix}" for run in runs for suffix in ("", "/rounds/1", "/models/0", "/models/-")]
    people = (*TRAINERS, SCORER, RATER, GUEST, *OTHERS)
    digests = [now.task.spec_sha256, now.task.base_digest, now.manifest.digest, "0" * 64]
    values: dict[str, Sequence[Any]] = {
        "run": runs,
        "run_id": runs,
        "following": runs,
        "parent": names,
        "name": [*names, *people, *(f"members/{name}" for name in people), "new-member"],
        "held_task": tasks,
        "task": [
            *tasks,
            now.scored_task,
            now.rated_task,
            *(tasks[0].replace("/1/", f"/{odd}/") for odd in ("01", "١", "-1")),
        ],
        "generation": [now.generation],
        "instance_id": ["first", "second"],
        "group": ["group of ann", "group of eve", ""],
        "spec_sha256": digests,
        "base_digest": digests,
        "digest": digests,
        "chunk_sha256": [*now.manifest.chunk_hashes, b"\0" * 32],
        "chunk_bytes": [2**20],
        "size_bytes": [now.manifest.size_bytes],
        "data": [now.update],
        "token": [now.token],
        "page_token": ["1", "3", "9" * 18],
        "rollouts_json": [
            now.rollouts_json,
            now.rollouts_json[:-1],
            b'[["p",["a"]]]',
            b'[["p",["a","b"],[1]]]',
            b"[" * 9000,
        ],
        "spec_json": [now.spec_json, spoilt_json(now.spec_json)],
        "certificate_request_der": now.requests_der,
        "certificate_chain_pem": [now.chain_pem],
    }
    return values.get(field, ())


def good(now: Situation, rpc: str) -> Message | None:
    """Returns a request that is accepted; None for a call that has no entry in GOOD."""
    make_request = GOOD.get(rpc)
    return None if make_request is None else make_request(now)


def _hello(_: Situation) -> Message:
    return fed.HelloRequest(
        protocol=fed.ProtocolRange(min=PROTOCOL_MIN, max=PROTOCOL_MAX),
        software_version="test",
        instance_id="first",
        group="group of ann",
        role=res.GROUP_ROLE_TRAIN,
        training_questions=50,
        noise=res.NoiseStatement(noised=True, epsilon=4.0, delta=1e-6, unit="respondent"),
    )


def _poll(now: Situation) -> Message:
    return fed.PollRequest(
        protocol=PROTOCOL_MAX,
        generation=now.generation,
        instance_id="first",
        hold=Duration(nanos=10_000_000),
        held_task=now.task.name,
    )


def _begin(now: Situation) -> Message:
    return fed.BeginUpdateRequest(
        task=now.task.name,
        spec_sha256=now.task.spec_sha256,
        base_digest=now.task.base_digest,
        manifest=manifest_message(now.manifest),
        examples=50,
        metrics={"base_distance": 0.5, "loss": 0.1},
        noise=res.NoiseStatement(noised=False),
    )


def _score(now: Situation) -> Message:
    return fed.ReportEvaluationRequest(
        task=now.scored_task,
        alignment_score=0.7,
        alignment_score_base2=0.6,
        wasserstein_score=0.5,
        questions=9,
        context_gain=-0.1,
    )


def _invite(_: Situation) -> Message:
    role, ttl = res.MEMBER_ROLE_CLIENT, Duration(seconds=60)
    return ops.CreateInviteRequest(name="new-member", role=role, group="G", ttl=ttl)


GOOD: dict[str, Callable[[Situation], Message]] = {
    "Hello": _hello,
    "Poll": _poll,
    "GetRunSpec": lambda now: fed.GetRunSpecRequest(run=now.run),
    "ListVersionRecords": lambda now: fed.ListVersionRecordsRequest(run=now.run),
    "GetManifest": lambda now: fed.GetManifestRequest(run=now.run),
    "GetChunks": lambda now: fed.GetChunksRequest(run=now.run),
    "GetRollouts": lambda now: fed.GetRolloutsRequest(task=now.rated_task),
    "GetRoundStep": lambda now: fed.GetRoundStepRequest(task=now.task.name, phase=1),
    "PutRoundStep": lambda now: fed.PutRoundStepRequest(
        task=now.task.name, terms_sha256=bytes(32), confirmation=fed.Confirmation(sum_sha256=bytes(32), signature=b"s")
    ),
    "GetTranscript": lambda now: fed.GetTranscriptRequest(run=now.run, round=1),
    "GetMaskedChunks": lambda now: fed.GetMaskedChunksRequest(run=now.run, round=1, member="ann"),
    "BeginUpdate": _begin,
    "PutChunks": lambda now: fed.PutChunksRequest(task=now.task.name, digest=now.manifest.digest, data=now.update),
    "CommitUpdate": lambda now: fed.CommitUpdateRequest(task=now.task.name, digest=now.manifest.digest),
    "ReportEvaluation": _score,
    "ReportProgress": lambda now: fed.ReportProgressRequest(task=now.task.name, stage="training", progress=0.5),
    "ReportFailure": lambda now: fed.ReportFailureRequest(task=now.task.name, reason="X", message="y"),
    "CompareQuestions": lambda now: fed.CompareQuestionsRequest(run=now.run, digests=[1, 2**63, 2**64 - 1]),
    "GetRoster": lambda _: fed.GetRosterRequest(after=0),
    "CreateRun": lambda now: ops.CreateRunRequest(run_id=now.next_run, spec_json=now.spec_json),
    "StartRun": lambda now: ops.StartRunRequest(name=f"runs/{now.run}"),
    "PauseRun": lambda now: ops.PauseRunRequest(name=f"runs/{now.run}"),
    "ResumeRun": lambda now: ops.ResumeRunRequest(name=f"runs/{now.run}"),
    "CancelRun": lambda now: ops.CancelRunRequest(name=f"runs/{now.run}", reason="enough"),
    "ArchiveRun": lambda now: ops.ArchiveRunRequest(name=f"runs/{now.ended_run}"),
    "UnarchiveRun": lambda now: ops.UnarchiveRunRequest(name=f"runs/{now.ended_run}"),
    "AskRewards": lambda now: ops.AskRewardsRequest(name=f"runs/{now.rated_run}", rollouts_json=now.rollouts_json),
    "GetRewards": lambda now: ops.GetRewardsRequest(name=f"runs/{now.rated_run}/rounds/1"),
    "GetRun": lambda now: ops.GetRunRequest(name=f"runs/{now.run}"),
    "ListRuns": lambda _: ops.ListRunsRequest(page_size=2),
    "GetRound": lambda now: ops.GetRoundRequest(name=f"runs/{now.run}/rounds/1"),
    "ListRounds": lambda now: ops.ListRoundsRequest(parent=f"runs/{now.run}"),
    "ListEvaluations": lambda now: ops.ListEvaluationsRequest(parent=f"runs/{now.run}"),
    "ListMembers": lambda _: ops.ListMembersRequest(page_size=3),
    "GetModel": lambda now: ops.GetModelRequest(name=f"runs/{now.run}/models/0"),
    "WatchRun": lambda now: ops.WatchRunRequest(name=f"runs/{now.run}"),
    "CreateInvite": _invite,
    "ApproveMember": lambda _: ops.ApproveMemberRequest(name=f"members/{TRAINERS[0]}"),
    "RevokeMember": lambda _: ops.RevokeMemberRequest(name=f"members/{GUEST}", reason="gone"),
    "ResetPeerKey": lambda _: ops.ResetPeerKeyRequest(name=f"members/{TRAINERS[0]}"),
    "CreatePageLink": lambda _: ops.CreatePageLinkRequest(),
    "ListAuditEvents": lambda _: ops.ListAuditEventsRequest(page_size=3),
    "Join": lambda now: en.JoinRequest(name=GUEST, token=now.token, certificate_request_der=now.requests_der[0]),
    "GetMembership": lambda now: en.GetMembershipRequest(certificate_chain_pem=now.chain_pem),
    "Renew": lambda now: en.RenewRequest(certificate_request_der=now.requests_der[1]),
}
