"""The partner's limits on a task. The functions only compare values: they read and change no file.

Each refusal is a PolicyForbids, which names the key of policy.toml, what the task asks for, and what is allowed.
"""

import fnmatch
import json
import re

from pluralllm.client.disclosure.differences import is_small
from pluralllm.client.disclosure.policy import Policy
from pluralllm.client.link.tasks import Task
from pluralllm.common.errors.tree import PolicyForbids
from pluralllm.common.predictor.architecture import layout_for
from pluralllm.common.words.embedding import Embedding
from pluralllm.common.words.names import TaskKind
from pluralllm.common.words.plugins import Plugin
from pluralllm.common.words.predictors import SUMS_SHOW
from pluralllm.common.words.spec import Episodes, GroupRole, RunSpec

MIB = 2**20
TABLE = "[private_rounds]"  # of policy.toml, in the names of keys
# A model id or a revision becomes part of file names and of URLs. With "." at the start of a piece it could leave its folder.
PIECE = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
MODEL_ID = re.compile(f"{PIECE}(/{PIECE})?")
REVISION = re.compile(f"{PIECE}(/{PIECE}){{0,4}}")


def check_task(policy: Policy, group: str, role: GroupRole, spec: RunSpec, task: Task) -> None:
    """Checks a task against the partner's policy. Raises PolicyForbids for the first limit that the task breaks.

    group, role: this client's group and its own role; held_out means that the group is only evaluated and must never train.
    spec: run spec of the task's run.
    """
    check_part(group, role, spec, task)
    check_sums(policy, group, role, spec)
    if spec.embedding.plugin is None:
        check_embedding_model(policy, spec.embedding)
    else:
        check_embedder(policy, spec.embedding.plugin)
    check_model_size(policy, spec)
    check_step(policy, spec)
    if task.base_version > policy.max_rounds:  # this client reads the record of each version up to it
        _forbid("max_rounds", task.base_version, f"at most {policy.max_rounds}")
    match task.kind:
        case TaskKind.TRAIN:
            check_training(policy, spec, task)
        case TaskKind.EVALUATE:
            check_evaluation(policy)
        case TaskKind.REWARD:
            check_rewards(policy, spec, task)


def is_closing(spec: RunSpec, task: Task) -> bool:
    """Returns whether a task is the part of a client in a run's closing round, in which nobody trains."""
    return task.kind is TaskKind.TRAIN and spec.is_closing_round(task.round)


def check_part(group: str, role: GroupRole, spec: RunSpec, task: Task) -> None:
    """Checks that this group may do this kind of task in this run. Raises PolicyForbids otherwise.

    group, role: this client's group and its own role. A group that is only evaluated takes part in a closing round, too.
    """
    role_in_run, kind = spec.groups.role_of(group, role), task.kind
    if role_in_run is None:
        _forbid("role", kind, "nothing: the run spec does not name this group")
    if GroupRole.HELD_OUT in (role, role_in_run) and kind is TaskKind.TRAIN and not is_closing(spec, task):
        _forbid("role", kind, "held_out: this group is evaluated only")
    if kind is TaskKind.REWARD and spec.rewards is None:
        _forbid("allow_rewards", "asked for in a run that trains", "only in a run whose spec asks for rewards")
    if kind is not TaskKind.REWARD and spec.rewards is not None:
        _forbid("allow_rewards", f"{kind} in a run that asks for rewards", "only rewards in such a run")


def check_sums(policy: Policy, group: str, role: GroupRole, spec: RunSpec) -> None:
    """Checks that the policy allows sums, if this group trains in a run whose updates are terms of sums.

    Raises PolicyForbids otherwise, also for the run's other tasks: such a client takes no part in the run.
    """
    trains = spec.groups.role_of(group, role) is GroupRole.TRAIN
    if spec.sums is not None and trains and not policy.allow_sums:
        _forbid("allow_sums", f"by {spec.sums.architecture}", f"false: {SUMS_SHOW}")


def check_embedding_model(policy: Policy, embedding: Embedding) -> None:
    """Checks that the policy allows the run's embedding model in the run's revision. Raises PolicyForbids otherwise.

    A path, absolute or relative, is never allowed: the run spec must not choose files of this machine. A pattern may end in
    @REVISION. Everybody can propose weights for a public model, and such a proposal is a revision, too: a model made for the
    purpose would keep the questions apart in the update, and so show their answers.
    """
    key, patterns = "allowed_embedding_models", policy.allowed_embedding_models
    if MODEL_ID.fullmatch(embedding.model) is None or ".." in embedding.model:
        _forbid(key, repr(embedding.model), "a model id: NAME or OWNER/NAME, never a path")
    if REVISION.fullmatch(embedding.revision) is None or ".." in embedding.revision:
        _forbid(key, f"revision {embedding.revision!r}", "the name of a branch or tag, or a commit")
    model = f"{embedding.model}@{embedding.revision}"
    if not any(fnmatch.fnmatchcase(model, pattern if "@" in pattern else f"{pattern}@*") for pattern in patterns):
        _forbid(key, model, ", ".join(patterns) or "none")


def check_embedder(policy: Policy, plugin: Plugin) -> None:
    """Checks that the policy allows the package of the run's embedder, whose code would run here.

    Raises PolicyForbids otherwise.
    """
    key, packages = "allowed_embedders", policy.allowed_embedders
    if not plugin.is_among(packages):
        line = f"{key} = {json.dumps([*packages, plugin.requirement])}"
        allowed = ", ".join(packages) or "none"
        _forbid(
            key, f"{plugin.name} of {plugin.requirement}", f"{allowed}; this line would allow its code here: {line}"
        )


def check_model_size(policy: Policy, spec: RunSpec) -> None:
    """Checks the size of the run's model, which follows from the run spec. Raises PolicyForbids if it is too large."""
    size_bytes = layout_for(spec).size_bytes
    if size_bytes > policy.max_model_mib * MIB:
        _forbid("max_model_mib", f"{size_bytes / MIB:.1f}", f"at most {policy.max_model_mib}")


def check_step(policy: Policy, spec: RunSpec) -> None:
    """Checks how many questions one training step may take. Raises PolicyForbids if there are too many."""
    questions = spec.training.batch_episodes * largest_episode(spec.training.episodes)
    if questions > policy.max_questions_of_step:
        _forbid("max_questions_of_step", questions, f"at most {policy.max_questions_of_step}")


def largest_episode(episodes: Episodes) -> int:
    """Returns the largest number of questions in one episode: context and targets."""
    return episodes.max_context + episodes.max_targets


def check_training(policy: Policy, spec: RunSpec, task: Task) -> None:
    """Checks the limits of a task that trains. Raises PolicyForbids for the first limit that the task breaks."""
    if spec.training.local_steps > policy.max_local_steps:
        _forbid("max_local_steps", spec.training.local_steps, f"at most {policy.max_local_steps}")
    if task.round > spec.last_round:
        _forbid("max_rounds", task.round, f"at most {spec.last_round}, the rounds of the run spec")
    if task.round > policy.max_rounds and not is_closing(spec, task):
        _forbid("max_rounds", task.round, f"at most {policy.max_rounds}")
    if spec.training.learning_rate > policy.max_learning_rate:
        _forbid("max_learning_rate", spec.training.learning_rate, f"at most {policy.max_learning_rate}")
    least = smallest_cohort(policy, spec)
    if task.cohort_size < least:
        _forbid("min_cohort", task.cohort_size, f"at least {least}")
    check_private_rounds(policy, spec)


def check_private_rounds(policy: Policy, spec: RunSpec) -> None:
    """Checks whether this client's updates may go to a run, by the policy's table [private_rounds].

    Raises PolicyForbids for plain rounds if private ones are required, and for private rounds in which fewer members may work
    together, or would hide an update, than this partner demands. A plain run of few clients is not forbidden: it waits for
    consent (differences.py).
    """
    rule, rounds = policy.private_rounds, spec.private_rounds
    if rounds is None:
        if rule.rounds == "required" and not is_small(spec):
            asked = "plain rounds, in which the coordinator reads each update"
            allowed = (
                'private rounds: a run spec with the table [private_rounds]; for plain ones rounds must be "allowed"'
            )
            _forbid(f"{TABLE} rounds", asked, allowed)
        return
    if rounds.colluders < rule.colluders:
        _forbid(f"{TABLE} colluders", f"{rounds.colluders} in the run spec", f"at least {rule.colluders}")
    most = spec.round.target_clients - rule.colluders
    if most < rule.hidden_among:
        asked = f"at most {most} of {spec.round.target_clients} clients, {rule.colluders} of whom may collude"
        _forbid(f"{TABLE} hidden_among", asked, f"at least {rule.hidden_among}")


def smallest_cohort(policy: Policy, spec: RunSpec) -> int:
    """Returns the smallest number of clients that may train together.

    A run spec with a smaller min_clients than the policy's min_cohort needs consent (differences.py). With the consent, its own
    min_clients holds.
    """
    return min(policy.min_cohort, spec.round.min_clients)


def check_updates_behind(policy: Policy, spec: RunSpec, version: int, updates: int) -> None:
    """Checks how many updates a published model version was made from. Raises PolicyForbids if there were too few.

    The coordinator promises the number in the run spec, and this is how the client notices that the promise was broken. Updates
    that the run's rule leaves out do not count.
    """
    least = min(policy.min_cohort, spec.aggregation.counted(spec.round.min_clients))
    if version > 0 and updates < least:
        _forbid("min_cohort", f"{updates} updates behind model version {version}", f"at least {least}")


def check_evaluation(policy: Policy) -> None:
    """Checks that the policy allows evaluations. Raises PolicyForbids otherwise."""
    if not policy.allow_evaluation:
        _forbid("allow_evaluation", "asked for", "false")
    if "alignment_score" not in policy.allowed_metrics:
        _forbid("allowed_metrics", "alignment_score", ", ".join(sorted(policy.allowed_metrics)) or "none")


def check_rewards(policy: Policy, spec: RunSpec, task: Task) -> None:
    """Checks that the policy allows rewards, and that the model is the one of the run spec. Raises PolicyForbids otherwise."""
    if not policy.allow_rewards:
        _forbid("allow_rewards", "asked for", "false")
    if spec.rewards is not None and (task.base_version, task.base_digest) != (0, spec.rewards.model_digest):
        asked, allowed = f"version {task.base_version}, {task.base_digest[:12]}", spec.rewards.model_digest[:12]
        _forbid("allow_rewards", f"by the model of {asked}", f"only by version 0, {allowed}, which the run spec names")


def _forbid(key: str, asked: object, allowed: str) -> None:
    raise PolicyForbids(key=key, asked=str(asked), allowed=allowed)
