"""The partner's policy: what this client does for a coordinator, and what may leave this machine.

The partner writes the file policy.toml, and no coordinator can change it. limits.py compares tasks with the policy.
"""

from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt

from pluralllm.common.errors.tree import InvalidConfig
from pluralllm.common.words.model_files import load_model
from pluralllm.common.words.plugins import check_package
from pluralllm.common.words.predictors import SUMS_SHOW
from pluralllm.common.words.private_rounds import MAX_MEMBERS
from pluralllm.common.words.spec import PRESETS

RoundsRule = Literal["required", "allowed"]
# Written beside the state when a partner joins, to be changed by the partner; deploy/examples/policy.toml is the same file. It
# demands private rounds. A file without this rule means "allowed", so that the runs of a client of an earlier release go on.
DEFAULT_POLICY = (resources.files("pluralllm.client") / "policy_default.toml").read_text(encoding="utf-8")
NOISE_TABLE = "[privacy]\n"  # the last part of the default policy begins with it
METRICS = frozenset({"loss", "base_distance", "alignment_score", "wasserstein_score", "context_gain"})
# Keys that a policy file of version 0.2.0 does not have. In such a file they have their defaults: the safer values, except that
# plain rounds stay allowed.
NEW_KEYS = frozenset(
    {
        "max_questions_of_step",
        "max_model_mib",
        "max_task_minutes",
        "max_worker_memory_gib",
        "allowed_presets",
        "min_questions_behind",
        "max_evaluations_of_run",
        "max_scores_per_question",
        "max_runs_a_day",
        "allow_sums",
        "private_rounds",
        "compare_questions",
        "allowed_embedders",
        "allowed_aggregators",
    }
)
# The presets whose updates were examined for what they show of the answers. Runs of the other presets wait for consent.
EXAMINED_PRESETS = ("default", "attention", "paper")
SUMS = "sums"  # the preset that no list allows, because it needs allow_sums
ANY_SPEC = "*"  # in allowed_presets: the client takes part in runs of any settings, without asking

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _known_preset(name: str) -> str:
    if name == SUMS:
        raise ValueError(f"no list of presets allows {SUMS}; allow_sums = true does: {SUMS_SHOW}")
    if name not in (*PRESETS, ANY_SPEC):
        allowed = ", ".join(preset for preset in PRESETS if preset != SUMS)
        raise ValueError(f"unknown preset; allowed: {allowed}, or {ANY_SPEC} for runs of any settings")
    return name


Preset = Annotated[str, AfterValidator(_known_preset)]
Package = Annotated[str, AfterValidator(check_package)]  # NAME, or NAME==VERSION


class RespondentPrivacy(BaseModel):
    """The table [privacy] of policy.toml: this client uses noised answers only, and how much they may tell about one respondent.

    Nobody else checks what the partner states here about its respondents; the guarantee holds if it is true.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    respondents_epsilon: Positive = 4.0  # the most that all releases together may tell about one respondent
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-6  # at most 1 / (10 respondents)
    questions_per_respondent: NonNegativeInt = (
        0  # the most that one respondent has answered; 0: every question ever released
    )
    respondents: NonNegativeInt = 0  # of the population; 0: the largest number of respondents of a question
    # The most that one respondent adds to the counts of one question; for shares, the largest weight as a multiple of the mean
    # weight. None: 1 for counts, and shares are not released.
    max_weight: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = None
    # A file of shares without a number of respondents cannot get noise. True: the client uses it as it is, and says so.
    allow_true_shares: bool = False
    # All private files whose respondents may be the same people have one population and one ledger.
    population: Annotated[str, Field(min_length=1, max_length=200)] = "respondents"
    ledger: Path | None = None  # folder of the ledger; default: privacy in the state directory

    def ledger_folder(self, state: Path) -> Path:
        """Returns the folder of the ledger and of the noised answers. state: the state directory."""
        return (self.ledger or state / "privacy").absolute()


class RoundPrivacy(BaseModel):
    """The table [private_rounds] of policy.toml: what this client demands of rounds before its update leaves this machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # required: this client trains in private rounds only. allowed: in plain ones, too, where the coordinator reads each update.
    rounds: RoundsRule = "allowed"
    # Members of a round that may work together with the coordinator, as this partner believes, whatever a run spec says.
    colluders: Annotated[int, Field(ge=0, le=MAX_MEMBERS)] = 1
    # Fewest known members, this client included and the colluders left out, whose updates are in a sum together.
    hidden_among: Annotated[int, Field(ge=1, le=MAX_MEMBERS)] = 3
    # pinned: members whose keys this partner has pinned are known. first_use: this client pins each key that it sees first.
    trust: Literal["pinned", "first_use"] = "pinned"
    # Probability that this client computes a large published version again; None: 4 (colluders + 1) / cohort, at most 1.
    verify_share: Annotated[float, Field(ge=0, le=1)] | None = None
    # The own scores of this group in private runs. sum: those of noised answers leave, those of true ones only inside the sum of
    # a round. own: as in plain runs.
    evaluation: Literal["sum", "own", "none"] = "sum"


class Policy(BaseModel):
    """The content of policy.toml. The defaults allow the tasks of an ordinary run, but no rewards."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # Limits on the work.
    max_local_steps: PositiveInt = 1_000  # largest number of training steps in one round
    max_rounds: PositiveInt = 10_000  # largest number of rounds in one run
    max_learning_rate: Positive = 1.0
    max_questions_of_step: PositiveInt = 2_000  # batch_episodes * (max_context + max_targets) of the run spec
    max_model_mib: PositiveInt = 1_024  # of the run's model, which this client downloads and sends back as an update
    max_task_minutes: Positive = 120.0  # time from the start of a task's work to its result
    max_worker_memory_gib: Positive = 16.0  # resident memory of the training process
    # Patterns as in a shell. A run spec names a model id, never a path; the partner's own folder is in its configuration.
    # A pattern without @REVISION allows every revision, also one that a stranger proposed.
    allowed_embedding_models: tuple[str, ...] = ("sentence-transformers/*@main",)
    # Packages whose embedders a run spec may name: their code runs here, with the rights of this client. Only what is installed
    # here can be named, in exactly the version that the run spec states.
    allowed_embedders: tuple[Package, ...] = ()
    # Packages whose aggregators a run spec may name without the owner's consent. Their code runs at the coordinator only.
    allowed_aggregators: tuple[Package, ...] = ()
    # A run with other settings waits for the owner's consent: settings alone can make an update that shows every answer.
    allowed_presets: tuple[Preset, ...] = EXAMINED_PRESETS
    # Limits on what leaves this machine. The consents and budgets are in the state directory, in the folder disclosure.
    min_cohort: PositiveInt = 3  # clients in each published model: from two, each learns the other's update
    min_questions_behind: PositiveInt = 30  # of this group, behind each number that leaves
    max_evaluations_of_run: PositiveInt = 32  # scored versions of one run; more scores show single answers
    # Scores in 30 days, of all runs, for each question behind them: from more scores than questions, answers can be computed.
    max_scores_per_question: Positive = 1.0
    max_runs_a_day: PositiveInt = 10  # new runs that this client joins in one day (UTC)
    allow_evaluation: bool = True
    allow_rewards: bool = False  # rewards show how this group is predicted to answer any question
    # Runs of kernel-sums/1: a coordinator can compute this group's answers from its sums, so only this key allows them.
    allow_sums: bool = False
    # Salted digests of the questions, without answers, leave at the first tasks of a run; only counts come back.
    compare_questions: bool = False
    allowed_metrics: frozenset[str] = METRICS  # the numbers that may leave this machine
    private_rounds: RoundPrivacy = RoundPrivacy()
    privacy: RespondentPrivacy | None = None  # None: the client uses the true answers

    @property
    def missing_keys(self) -> tuple[str, ...]:
        """The new keys that the partner's file does not set, sorted. Their defaults hold."""
        return tuple(sorted(NEW_KEYS - self.model_fields_set))


def new_policy(*, noise: bool) -> str:
    """Returns the text of the policy file of a partner that joins. noise: whether its client uses noised answers."""
    if noise:
        return DEFAULT_POLICY
    before, _, table = DEFAULT_POLICY.partition(NOISE_TABLE)
    commented = (line if line.startswith("#") else f"# {line}" for line in table.splitlines(keepends=True))
    return f"{before}# {NOISE_TABLE}{''.join(commented)}"


def load_policy(path: Path | None) -> Policy:
    """Reads the partner's policy. Returns the default policy if `path` is None.

    Raises InvalidConfig if the file cannot be read, or if a key or a value is not allowed.
    """
    if path is None:
        return Policy()
    policy = load_model(path, Policy, InvalidConfig)
    unknown = policy.allowed_metrics - METRICS
    if unknown:
        problem = f"  allowed_metrics: {', '.join(sorted(unknown))} unknown; allowed: {', '.join(sorted(METRICS))}"
        raise InvalidConfig(file=str(path), problems=problem)
    return policy
