"""The partner's policy: limits on the tasks that this client does. No coordinator can change the limits.

The partner writes the file policy.toml. `check_task` only compares values: it reads and changes no file.
"""

import fnmatch
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from pluralllm.common.errors.tree import InvalidConfig, PolicyForbids
from pluralllm.common.words.names import TaskKind
from pluralllm.common.words.spec import GroupRole, RunSpec, explain

# Written beside the state when a partner joins, to be changed by the partner; deploy/examples/policy.toml is the same file.
DEFAULT_POLICY = (resources.files("pluralllm.client") / "policy_default.toml").read_text(encoding="utf-8")
METRICS = frozenset({"loss", "base_distance", "alignment_score", "wasserstein_score"})


class Policy(BaseModel):
    """The content of policy.toml. The defaults allow the tasks of an ordinary run, but no rewards."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_local_steps: PositiveInt = 1_000  # largest number of training steps in one round
    max_rounds: PositiveInt = 10_000  # largest number of rounds in one run
    min_cohort: PositiveInt = 2  # smallest cohort to train in: with one client, the published model shows its update
    max_learning_rate: Annotated[float, Field(gt=0)] = 1.0
    allowed_embedding_models: tuple[str, ...] = ("*",)  # patterns as in a shell
    allow_evaluation: bool = True
    allow_rewards: bool = False  # rewards show how this group is predicted to answer any question
    allowed_metrics: frozenset[str] = METRICS  # the numbers that may leave this machine


def load_policy(path: Path | None) -> Policy:
    """Reads the partner's policy. Returns the default policy if `path` is None.

    Raises InvalidConfig if the file cannot be read, or if a key or a value is not allowed.
    """
    if path is None:
        return Policy()
    try:
        policy = Policy.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise InvalidConfig(file=str(path), problems=f"  it cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidConfig(file=str(path), problems=f"  not TOML: {error}") from error
    except ValidationError as error:
        raise InvalidConfig(file=str(path), problems=explain(error)) from error
    unknown = policy.allowed_metrics - METRICS
    if unknown:
        problem = f"  allowed_metrics: {', '.join(sorted(unknown))} unknown; allowed: {', '.join(sorted(METRICS))}"
        raise InvalidConfig(file=str(path), problems=problem)
    return policy


def check_task(
    policy: Policy, role: GroupRole, spec: RunSpec, kind: TaskKind, round_number: int, cohort_size: int
) -> None:
    """Checks a task against the partner's policy. Raises PolicyForbids for the first limit that the task breaks.

    role: held_out if this group is only evaluated and must never train. spec: run spec of the task's run. cohort_size: number
    of clients in the task's round.
    """
    if role is GroupRole.HELD_OUT and kind is TaskKind.TRAIN:
        _forbid("role", "train", "held_out: this group is evaluated only")
    if not any(fnmatch.fnmatchcase(spec.embedding.model, pattern) for pattern in policy.allowed_embedding_models):
        _forbid("allowed_embedding_models", spec.embedding.model, ", ".join(policy.allowed_embedding_models))
    if kind is TaskKind.REWARD:
        if not policy.allow_rewards:
            _forbid("allow_rewards", "asked for", "false")
        return
    if kind is TaskKind.EVALUATE:
        if not policy.allow_evaluation:
            _forbid("allow_evaluation", "asked for", "false")
        if "alignment_score" not in policy.allowed_metrics:
            _forbid("allowed_metrics", "alignment_score", ", ".join(sorted(policy.allowed_metrics)) or "none")
        return
    if spec.training.local_steps > policy.max_local_steps:
        _forbid("max_local_steps", spec.training.local_steps, f"at most {policy.max_local_steps}")
    if round_number > policy.max_rounds:
        _forbid("max_rounds", round_number, f"at most {policy.max_rounds}")
    if spec.training.learning_rate > policy.max_learning_rate:
        _forbid("max_learning_rate", spec.training.learning_rate, f"at most {policy.max_learning_rate}")
    if cohort_size < policy.min_cohort:
        _forbid("min_cohort", cohort_size, f"at least {policy.min_cohort}")


def permitted_metrics(policy: Policy, metrics: Mapping[str, float]) -> dict[str, float]:
    """Returns the metrics that the policy allows to leave this machine."""
    return {name: value for name, value in metrics.items() if name in policy.allowed_metrics}


def _forbid(key: str, asked: object, allowed: str) -> None:
    raise PolicyForbids(key=key, asked=str(asked), allowed=allowed)
