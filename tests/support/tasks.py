"""Tasks as a coordinator hands them out, for tests of what a client does with one."""

from typing import Any

from pluralllm.client.link.tasks import Task
from pluralllm.common.words.ids import ClientId, Digest, ModelVersion, RoundNumber, RunId
from pluralllm.common.words.names import TaskKind, TaskName
from pluralllm.common.words.spec import RunSpec


def task_of(
    spec: RunSpec,
    kind: TaskKind = TaskKind.TRAIN,
    run: str = "r",
    round_number: int = 3,
    cohort_size: int = 4,
    **changes: Any,
) -> Task:
    """Returns a task of the client ann. `changes` are other fields of the task."""
    name = TaskName(RunId(run), RoundNumber(round_number), kind, ClientId("ann"))
    values: dict[str, Any] = {
        "name": str(name),
        "run": RunId(run),
        "kind": kind,
        "round": RoundNumber(round_number),
        "spec_sha256": spec.sha256(),
        "base_version": ModelVersion(2),
        "base_digest": Digest("b" * 64),
        "base_record_sha256": "c" * 64,
        "cohort_size": cohort_size,
        "seed": 7,
    }
    return Task(**{**values, **changes})
