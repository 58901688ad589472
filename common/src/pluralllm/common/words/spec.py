"""The run spec: everything that defines a training job. The spec and its hash never change after the run is created."""

import hashlib
import json
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import FailFast, Field, ValidationError, model_validator

from pluralllm.common.errors.tree import InvalidSpec
from pluralllm.common.text.reading import Unreadable, read_text
from pluralllm.common.words.aggregation import Aggregation
from pluralllm.common.words.embedding import Embedding
from pluralllm.common.words.ids import Digest
from pluralllm.common.words.names import ModelName
from pluralllm.common.words.predictors import (
    KERNEL_SUMS,
    NEURAL_PROCESS,
    KernelSums,
    NeuralProcess,
    Predictor,
    architecture_of,
)
from pluralllm.common.words.privacy_demand import PrivacyDemand
from pluralllm.common.words.private_rounds import PrivateRounds
from pluralllm.common.words.problems import MAX_PROBLEMS, explain, shown_part
from pluralllm.common.words.questions import HoldOut
from pluralllm.common.words.reward_weights import RewardOptions, RewardRun
from pluralllm.common.words.roles import GroupRole as GroupRole  # noqa: PLC0414 - most modules take it from here
from pluralllm.common.words.spec_part import YEAR_S, Count, GroupLabel, NoNul, Positive, Seconds, Seed, SpecPart

Preset = Literal["default", "attention", "paper", "fourier", "sums"]
PRESETS: tuple[str, ...] = get_args(Preset)

# A spec comes from another machine. Its sender chooses how much work the reader has, so every size has a bound.
MAX_SPEC_BYTES = 256 * 1024  # of a spec's JSON, as it is sent and as it is stored
MAX_GROUPS = 1000

CLOSES_FROM = "pluralllm.run/4"  # the first format with closing rounds
LATER_TABLES = ("rewards", "privacy", "private_rounds")

UpdateEncoding = Literal["fp32", "bf16", "int8"]


class Groups(SpecPart):
    """The groups that take part. If both lists are empty, any group takes part in the role that its client declares."""

    train: Annotated[tuple[GroupLabel, ...], Field(max_length=MAX_GROUPS), FailFast()] = ()
    held_out: Annotated[tuple[GroupLabel, ...], Field(max_length=MAX_GROUPS), FailFast()] = ()

    @model_validator(mode="after")
    def _no_group_twice(self) -> Self:
        times = Counter((*self.train, *self.held_out))
        if times.total() > MAX_GROUPS:
            raise ValueError(f"names {times.total()} groups, at most {MAX_GROUPS} are allowed")
        twice = sorted(name for name, number in times.items() if number > 1)
        if twice:
            shown = ", ".join(shown_part(name) for name in twice[:MAX_PROBLEMS])
            raise ValueError(f"a group is named once, as train or held_out; twice: {shown}")
        return self

    @property
    def named(self) -> bool:
        return bool(self.train or self.held_out)

    def role_of(self, group: str, declared: GroupRole) -> GroupRole | None:
        """Returns the role of a group in this run: held out if the run spec says so, otherwise the declared role.

        declared: the role that the group's client declares.
        Returns None if the group takes no part, because the spec names groups and this group is not one of the named groups.
        """
        if group in self.held_out_names:
            return GroupRole.HELD_OUT
        return declared if group in self.train_names or not self.named else None

    @cached_property
    def train_names(self) -> frozenset[str]:
        """The groups that train. The loop looks into this set at each tick for each connected client."""
        return frozenset(self.train)

    @cached_property
    def held_out_names(self) -> frozenset[str]:
        """The groups that only evaluate, as a set like `train_names`."""
        return frozenset(self.held_out)


class RoundPolicy(SpecPart):
    """The conditions on which a round starts and ends."""

    min_clients: Count = 2  # quorum: below 3, one partner could subtract its own delta and read the other's
    target_clients: Count = 2  # cohort size; more than min_clients is over-selection
    gather_s: Seconds = 30.0  # how long a round waits for target_clients before it starts with min_clients
    deadline_s: Seconds = 600.0  # for updates, from the start of the round
    # Extra time for the other clients after min_clients have delivered.
    grace_after_quorum_s: Annotated[float, Field(ge=0, le=YEAR_S)] = 60.0
    on_missed_quorum: Literal["extend", "skip", "abort"] = "extend"
    max_extensions: Annotated[int, Field(ge=0, le=1000)] = 10  # of one round; after this number the run is aborted
    evaluate_every: Count = 1  # rounds; version 0 and the last version are always evaluated
    evaluation_deadline_s: Seconds = 300.0

    @model_validator(mode="after")
    def _quorum_fits(self) -> Self:
        if self.min_clients > self.target_clients:
            raise ValueError(f"min_clients {self.min_clients} is above target_clients {self.target_clients}")
        return self


class Episodes(SpecPart):
    """The numbers of context and target questions in one training episode. The questions are drawn anew for each episode.

    No question is both context and target. If a group has too few questions for the upper bounds, its
    episodes are smaller.
    """

    min_context: Count = 10
    max_context: Count = 100
    min_targets: Count = 10
    max_targets: Count = 100

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_context > self.max_context or self.min_targets > self.max_targets:
            raise ValueError("min_context <= max_context and min_targets <= max_targets must hold")
        return self


class Training(SpecPart):
    """The local training that a client does in one round."""

    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: Positive = 3e-4
    schedule: Literal["constant", "cosine"] = "constant"
    # Local steps from the full learning rate down to 0; None means all steps of the run. With fewer steps the rate climbs
    # again afterwards, as in the reference implementation.
    cosine_steps: Count | None = None
    # True keeps the local optimizer's moments between rounds, although the server replaces the weights.
    keep_optimizer_state: bool = False
    local_steps: Count = 6
    batch_episodes: Count = 1
    loss: Literal["gaussian", "cross_entropy", "alignment"] = "gaussian"
    # Raises each episode's shares, in context and targets alike, to the power exp(N(0, this^2)). The predictor then learns to
    # read from the context how united a group is, instead of assuming one of the few groups that it has seen. 0: no change.
    sharpness_spread: Annotated[float, Field(ge=0, le=2)] = 0.0
    # The target shares are raised to the power 1 / this (not with loss = gaussian). Above 1 they are softer: a predictor is
    # surer about the groups that it trains on than it can be about others.
    target_temperature: Annotated[float, Field(ge=0.1, le=10)] = 1.0
    gradient_clip_norm: Positive | None = None
    proximal_mu: Annotated[float, Field(ge=0, allow_inf_nan=False)] = (
        0.0  # FedProx: pull to the round's base; 0 is none
    )
    episodes: Episodes = Episodes()


class Updates(SpecPart):
    """The encoding of the updates that clients upload."""

    encoding: UpdateEncoding = "fp32"


class Evaluation(SpecPart):
    """The way in which a model version is scored for one group."""

    context_questions: Count = 20
    draws: Count = 3  # contexts drawn by the seed; the score is the average over them
    # Share of a training group's questions that nobody trains on; a training group is scored on these alone. The hash of a
    # question decides, so all groups leave out the same ones. A held-out group is scored on all questions but its context.
    holdout_share: Annotated[float, Field(ge=0, lt=1)] = 0.1


class RunSpec(SpecPart):
    """The definition of one training job. Two specs with the same hash define the same job.

    `load_spec` reads a spec from a file.
    """

    # run/2 limits one member's part in a version: its weight (server/rounds/weighting.py) and the length of its update
    # (server/rounds/clipping.py). run/3 chooses the questions that nobody trains on by their keys, which the order of options and
    # the spelling do not change; earlier formats choose by exact text and order. The presets name run/3. From run/4 on,
    # private_rounds.closing_scores has an effect.
    format: Literal["pluralllm.run/1", "pluralllm.run/2", "pluralllm.run/3", "pluralllm.run/4"] = "pluralllm.run/1"
    title: Annotated[str, Field(max_length=200), NoNul] = ""
    seed: Seed = 0
    rounds: Annotated[int, Field(ge=1, le=100_000)] = 30
    groups: Groups = Groups()
    round: RoundPolicy = RoundPolicy()
    predictor: Predictor = NeuralProcess()
    training: Training = Training()
    updates: Updates = Updates()
    aggregation: Aggregation = Aggregation()
    evaluation: Evaluation = Evaluation()
    embedding: Embedding
    rewards: RewardRun | None = None  # None: the run trains
    privacy: PrivacyDemand | None = None  # None: clients take part whether their answers have noise or not
    private_rounds: PrivateRounds | None = None  # None: plain rounds, in which the coordinator reads each update

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        problem = self.predictor.problem_with(self.embedding.normalize, len(self.embedding.templates))
        if problem is not None:
            raise ValueError(problem)
        of_deltas = self.updates.encoding, self.aggregation.optimizer, self.aggregation.rule
        if self.rewards is not None and of_deltas != ("fp32", "fedavg", "mean"):
            raise ValueError(
                "rewards are not deltas: set updates.encoding = fp32, aggregation.optimizer = fedavg and "
                "aggregation.rule = mean (rewards.aggregation.rule combines rewards)"
            )
        return self

    @model_validator(mode="after")
    def _sums_fit(self) -> Self:
        problems = [] if self.sums is None else list(_problems_of_sums(self, self.sums))
        if problems:
            raise ValueError(f"the updates of {KERNEL_SUMS} are terms of sums: set {' and '.join(problems)}")
        return self

    @model_validator(mode="after")
    def _private_rounds_fit(self) -> Self:
        if self.private_rounds is None:
            return self
        problems = self.private_rounds.problems(
            target_clients=self.round.target_clients,
            min_clients=self.round.min_clients,
            max_examples=self.aggregation.max_examples,
            encoding=self.updates.encoding,
            asks_for_rewards=self.rewards is not None,
            term_bound=None if self.sums is None else self.aggregation.max_delta_norm,
        )
        if problems:
            raise ValueError(f"private rounds add masked updates: set {' and '.join(problems)}")
        return self

    @model_validator(mode="after")
    def _rule_fits(self) -> Self:
        rule, is_private = self.aggregation.rule, self.private_rounds is not None
        if rule != "mean" and is_private:
            raise ValueError(
                f"aggregation.rule {rule} looks at single updates; private rounds hide them: choose rule = mean"
            )
        problems = self.aggregation.problems(self.round.min_clients, limits_members=self.limits_members)
        if problems:
            raise ValueError(f"aggregation.rule {rule}: set {' and '.join(problems)}")
        return self

    @model_validator(mode="after")
    def _enough_groups(self) -> Self:
        if self.groups.train and self.round.target_clients > len(self.groups.train):
            raise ValueError(
                f"round.target_clients {self.round.target_clients} is above the {len(self.groups.train)} groups.train"
            )
        return self

    @model_validator(mode="after")
    def _small_enough(self) -> Self:
        size_bytes = len(self.canonical_json())
        if size_bytes > MAX_SPEC_BYTES:  # the stored form may be larger than the form that was sent
            raise ValueError(f"the spec has {size_bytes} bytes as canonical JSON, at most {MAX_SPEC_BYTES} are allowed")
        return self

    @property
    def limits_members(self) -> bool:
        """Whether weights and lengths of updates are limited in relation to the other updates of the round.

        A term of a sum has no limit: without a part of it, the sum would be that of another problem.
        """
        return self.format != "pluralllm.run/1" and self.sums is None

    @property
    def gives_up_small_sums(self) -> bool:
        """Whether a private round ends at its deadline when all who dealt are too few for a sum that its members accept.

        The logs of runs of earlier formats have extensions there, and are replayed as they were written.
        """
        return self.format not in ("pluralllm.run/1", "pluralllm.run/2")

    @property
    def held_out(self) -> HoldOut:
        """The rule by which all groups withhold the same questions from training."""
        by_key = self.format not in ("pluralllm.run/1", "pluralllm.run/2")
        return HoldOut(self.evaluation.holdout_share, by_key=by_key)

    @property
    def closes(self) -> bool:
        """Whether a closing round after the last round sums the scores of the last version.

        Earlier formats named closing_scores before it had an effect. The members of a closing round send deltas of 0, and a term
        of a sum that is 0 would be another problem's.
        """
        earlier = ("pluralllm.run/1", "pluralllm.run/2", "pluralllm.run/3")
        is_private = self.private_rounds is not None and self.private_rounds.closing_scores
        return is_private and self.sums is None and self.format not in earlier

    @property
    def last_round(self) -> int:
        """The number of the run's last round, which is the closing round if there is one."""
        return self.rounds + self.closes

    def is_closing_round(self, number: int) -> bool:
        """Returns whether a round is the run's closing round, in which all groups may take part and nobody trains."""
        return self.closes and number == self.last_round

    @property
    def sums(self) -> KernelSums | None:
        """The predictor's settings if the updates of this run are terms of sums; None for every other run."""
        return self.predictor if isinstance(self.predictor, KernelSums) and self.rewards is None else None

    def for_rewards(self, model: ModelName, digest: Digest, options: RewardOptions, file: str) -> "RunSpec":
        """Returns the spec of a new run that asks for rewards. Call the method on the spec of the run that trained `model`.

        Predictor, embedding, evaluation, training, privacy, seed and title are copied. Any group may take part, and rewards are
        sent as float32.
        digest: digest of the model's file. file: the name under which an error reports the spec.
        Raises InvalidSpec if the new spec is not valid.
        """
        values = self.model_dump(mode="json") | {
            "rounds": options.batches,
            "groups": {},
            "round": {
                "min_clients": options.min_clients,
                "target_clients": max(options.min_clients, options.target_clients),
                "deadline_s": options.deadline_s,
                "grace_after_quorum_s": options.grace_s,
                "on_missed_quorum": "skip",
            },
            "updates": {},
            "aggregation": {},
            "private_rounds": None,  # the answers of clients are rewards, and no updates
            "rewards": {
                "source": str(model),
                "model_digest": digest,
                "aggregation": {"rule": options.rule, "temperature": options.temperature, "alpha": options.alpha},
            },
        }
        try:
            return RunSpec.model_validate(values)
        except ValidationError as error:
            raise InvalidSpec(file=file, problems=explain(error)) from error

    def canonical_json(self) -> bytes:
        """Returns the bytes that the spec's hash is computed over: JSON with sorted keys and no spaces."""
        # A table or key that came later is left out where it says nothing: the hash of an earlier release's spec never changes.
        left_out: dict[str, Any] = {name: True for name in LATER_TABLES if getattr(self, name) is None}
        left_out["aggregation"] = self.aggregation.later_defaults()
        values = self.model_dump(mode="json", exclude=left_out)
        return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()

    def sha256(self) -> Digest:
        return Digest(hashlib.sha256(self.canonical_json()).hexdigest())


def _problems_of_sums(spec: RunSpec, predictor: KernelSums) -> Iterator[str]:
    """Yields what a run spec whose updates are terms of sums must set, for each setting that does not fit."""
    aggregation, least = spec.aggregation, predictor.subspace_rounds + 1
    if (aggregation.optimizer, aggregation.server_learning_rate) != ("fedavg", 1.0):
        yield "aggregation.optimizer = fedavg with server_learning_rate = 1"
    if aggregation.weighting != "uniform":
        yield "aggregation.weighting = uniform"
    if aggregation.rule != "mean":
        yield "aggregation.rule = mean"
    if spec.updates.encoding != "fp32":
        yield "updates.encoding = fp32"
    if spec.round.on_missed_quorum == "skip":
        yield "round.on_missed_quorum = extend or abort"
    if spec.rounds < least:
        yield f"rounds to at least {least} (predictor.subspace_rounds and one more)"
    if spec.groups.train and spec.round.target_clients != len(spec.groups.train):
        yield f"round.target_clients to {len(spec.groups.train)}, the number of groups.train"


def parse_spec(text: bytes, file: str) -> RunSpec:
    """Reads a spec from JSON. file: the name under which an error reports the spec.

    Raises InvalidSpec if the spec is not valid; the error lists the problems with their keys and the allowed values. A text of
    more than MAX_SPEC_BYTES is refused before it is read.
    """
    _check_size(len(text), file)
    try:
        return RunSpec.model_validate_json(text)
    except ValidationError as error:
        raise InvalidSpec(file=file, problems=explain(error)) from error


def load_spec_values(path: Path) -> dict[str, Any]:
    """Reads the values of a spec file, without those of its preset. Raises InvalidSpec if the file cannot be read."""
    try:
        text = read_text(path, MAX_SPEC_BYTES)
    except Unreadable as error:
        raise InvalidSpec(file=str(path), problems=f"  {error.problem}") from error
    if not text.strip():  # what a failed command leaves in `command > FILE`
        raise InvalidSpec(file=str(path), problems="  it is empty; `pluralllm spec new` prints a spec to begin with")
    return spec_values(text, str(path))


def spec_from_toml(text: str, file: str) -> RunSpec:
    """Reads a spec from TOML text. file: the name under which an error reports the spec.

    Raises InvalidSpec if the text is not TOML or the spec is not valid.
    """
    return spec_from_values(spec_values(text, file), file)


def spec_values(text: str, file: str) -> dict[str, Any]:
    """Returns the values in a spec's TOML text, without those of its preset. Raises InvalidSpec if the text is not TOML."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidSpec(file=file, problems=f"  not TOML: {error}") from error
    except RecursionError as error:
        raise InvalidSpec(file=file, problems="  its tables and lists are nested too deep") from error


def spec_from_values(values: Mapping[str, Any], file: str) -> RunSpec:
    """Reads a spec from the values of a TOML file, like `spec_from_toml`. Raises InvalidSpec if the spec is not valid."""
    own = dict(values)
    preset = own.pop("preset", "default")
    if preset not in PRESETS:
        raise InvalidSpec(file=file, problems=f"  preset: is {preset!r}, allowed: {', '.join(PRESETS)}")
    usual = preset_values(preset, has_private_rounds="private_rounds" in own)
    try:
        return RunSpec.model_validate(merge(usual, own))
    except ValidationError as error:
        raise InvalidSpec(file=file, problems=explain(error) + _hint(error)) from error


def _hint(error: ValidationError) -> str:
    """Returns a line with the fix for a spec file of an earlier release, whose default preset had another predictor."""
    paths = [problem["loc"] for problem in error.errors() if problem["type"] == "extra_forbidden"]
    of_earlier = [path[-1] for path in paths if path[0] == "predictor" and path[-1] in NeuralProcess.model_fields]
    if not of_earlier:
        return ""
    return f'\n  predictor.{of_earlier[0]} belongs to the architecture {NEURAL_PROCESS}: name its preset, preset = "attention"'


def _check_size(size_bytes: int, file: str) -> None:
    if size_bytes > MAX_SPEC_BYTES:
        raise InvalidSpec(file=file, problems=f"  it has {size_bytes} bytes, at most {MAX_SPEC_BYTES} are allowed")


def preset_values(name: str, *, has_private_rounds: bool = False) -> dict[str, Any]:
    """Returns the values of a preset that comes with this package, nested as in a spec file.

    has_private_rounds: whether the run has private rounds. A preset's table [private_rounds] is left out of every other run.
    """
    text = resources.files("pluralllm.common.words").joinpath("presets", f"{name}.toml").read_text("utf-8")
    left_out = set() if has_private_rounds else {"private_rounds"}
    return {key: value for key, value in tomllib.loads(text).items() if key not in left_out}


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Returns a copy of the table `base` with all values of the table `over`.

    Nested tables are merged key by key. If both tables have another value under the same key, the value of `over` is taken.
    A predictor table replaces one of another architecture, because the two have other keys.
    """
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        if both and key == "predictor":
            both = architecture_of(base[key]) == value.get("architecture", architecture_of(base[key]))
        merged[key] = merge(base[key], value) if both else value
    return merged
