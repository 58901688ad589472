"""The coordinator's answers to a poll, converted from protobuf to plain dataclasses."""

from pluralllm.client.link.tasks import RunOver, Task
from pluralllm.common.text.printable import printable
from pluralllm.common.wire.checked_answers import KIND_WORDS
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
