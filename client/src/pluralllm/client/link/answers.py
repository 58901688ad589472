"""Hello and the coordinator's answers, converted between protobuf and plain dataclasses."""

from pluralllm.client.link.tasks import Greeting, Introduction, RosterPage, RunOver, Task
from pluralllm.common import __version__
from pluralllm.common.text.printable import printable
from pluralllm.common.wire.checked_answers import KIND_WORDS
from pluralllm.common.wire.messages import (
    PRIVATE_ROUNDS,
    PROTOCOL_MAX,
    PROTOCOL_MIN,
    ROLES,
    addresses_in,
    noise_message,
    roster_entry_in,
    timestamp,
)
from pluralllm.common.words.ids import Digest, ModelVersion, RoundNumber, RunId, TaskId
from pluralllm.v1 import federation_pb2 as pb
from pluralllm.v1.resources_pb2 import RunOutcome


def task_in(message: pb.Task) -> Task:
    """Returns the task in an answer."""
    return Task(
        name=TaskId(message.name),
        run=RunId(message.run),
        kind=KIND_WORDS[message.kind],
        round=RoundNumber(message.round),
        spec_sha256=Digest(message.spec_sha256),
        base_version=ModelVersion(message.base_version),
        base_digest=Digest(message.base_digest),
        base_record_sha256=message.base_record_sha256,
        cohort_size=message.cohort_size,
        seed=message.seed,
        traceparent=message.traceparent,
        phase=message.phase,
    )


def run_over_in(message: pb.RunOver) -> RunOver:
    """Returns the end of a run in an answer."""
    return RunOver(
        run=RunId(message.run),
        outcome=RunOutcome.Name(message.outcome).removeprefix("RUN_OUTCOME_").lower(),
        reason=printable(message.reason),
        version=ModelVersion(message.version),
        digest=Digest(message.version_digest),
    )


def hello_request(introduction: Introduction, instance: str) -> pb.HelloRequest:
    """Returns the request of Hello. instance: the random id of this daemon's process."""
    claim = introduction.peer_key
    return pb.HelloRequest(
        protocol=pb.ProtocolRange(min=PROTOCOL_MIN, max=PROTOCOL_MAX),
        software_version=__version__,
        instance_id=instance,
        group=introduction.group,
        role=ROLES[introduction.role],
        training_questions=introduction.questions,
        capabilities=[PRIVATE_ROUNDS] if claim is not None else [],
        data_change_time=None if introduction.data_changed_s is None else timestamp(introduction.data_changed_s),
        noise=noise_message(introduction.noise),
        peer_key=None
        if claim is None
        else pb.PeerKey(key_der=claim.key_der, endorsement=claim.endorsement, proof=claim.proof),
    )


def greeting_in(message: pb.HelloResponse) -> Greeting:
    """Returns the answer to Hello."""
    return Greeting(
        message.server_time.ToMilliseconds() / 1000,
        addresses_in(message),
        message.release,
        message.roster_head if PRIVATE_ROUNDS in message.capabilities else None,
    )


def roster_page_in(message: pb.GetRosterResponse) -> RosterPage:
    """Returns the entries of the roster in an answer."""
    return RosterPage(tuple(map(roster_entry_in, message.entries)), message.head)
