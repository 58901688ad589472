"""The table [aggregation] of a run spec: how the updates of a round become the next model version."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pluralllm.common.words.plugins import Plugin
from pluralllm.common.words.spec_part import Count, Positive, SpecPart

Rule = Literal["mean", "trimmed_mean", "median", "multi_krum", "median_norm_clip", "plugin"]
LATER_KEYS = ("rule", "assumed_attackers")  # that specs of earlier releases do not have


class Aggregation(SpecPart):
    """The computation of the next model version from updates: client weights, the mean delta, and the server optimizer's step.

    Sources: Hsu et al. 2019 (arXiv 1909.06335) for fedavgm; Reddi et al. 2021 (arXiv 2003.00295), Algorithm 2, for fedadam and
    fedyogi. The mean delta is these papers' pseudo-gradient with the opposite sign. The optimizers do no bias correction.
    The sources of the rules stand in server/aggregation/rules.py and server/rounds/clipping.py.
    """

    # What takes the place of the weighted mean, against members that send harmful updates. For each value of the model,
    # trimmed_mean leaves out the largest and the smallest numbers, and median takes the one in the middle. multi_krum leaves out
    # whole updates that are far from the others, and median_norm_clip shortens every update to the round's median length. All
    # of them need format run/2 or later, and plain rounds. docs/security.md says what each stops, and what it costs a minority.
    # plugin: the aggregator of another package, which the table [aggregation.plugin] names.
    rule: Rule = "mean"
    # For trimmed_mean and multi_krum: how many members of one round may be hostile. trimmed_mean leaves out so many numbers at
    # each end and needs round.min_clients of twice as many and one; multi_krum leaves out so many updates and needs twice as
    # many and three. It has no effect with the other rules.
    assumed_attackers: Count = 1
    plugin: Annotated[Plugin | None, Field(exclude_if=lambda plugin: plugin is None)] = None
    optimizer: Literal["fedavg", "fedavgm", "fedadam", "fedyogi"] = "fedavg"
    # With fedadam and fedyogi this is about the most that one value moves in a round, so choose 0.1 or less.
    server_learning_rate: Positive = 1.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9  # beta1 of fedavgm, fedadam and fedyogi
    second_moment: Annotated[float, Field(ge=0, lt=1)] = 0.99  # beta2 of fedadam and fedyogi
    adaptivity: Annotated[float, Field(ge=1e-8, le=1)] = (
        1e-3  # tau of fedadam and fedyogi: the smaller, the more adaptive
    )
    weighting: Literal["examples", "uniform", "q_fair", "agnostic", "adaptive"] = "examples"
    # How much more weight goes to clients that the base model predicts badly. For q_fair it is q: the weight is proportional
    # to examples * distance^q. For agnostic it is gamma, the step of the worst-case mixture. For adaptive it is the inverse
    # temperature over past distances (use tens, because distances differ by hundredths). It has no effect with examples and
    # uniform. Sources and bounds stand in server/rounds/weighting.py; in private rounds each client computes its own factor
    # (common/words/own_weights.py).
    fairness: Positive = 1.0
    max_examples: Count = 100_000  # upper bound of one client's weight
    max_delta_norm: Positive = 100.0  # L2 norm of the whole update

    @model_validator(mode="after")
    def _plugin_fits(self) -> Self:
        if (self.rule == "plugin") is not (self.plugin is not None):
            raise ValueError('rule = "plugin" and the table [aggregation.plugin] belong together')
        return self

    def later_defaults(self) -> set[str]:
        """Returns the keys that came in a later release and have their defaults. They are left out of a spec's hash."""
        fields = type(self).model_fields
        return {key for key in LATER_KEYS if getattr(self, key) == fields[key].default}

    @property
    def is_fair(self) -> bool:
        """Whether an update counts more if the base version predicts its client's answers badly."""
        return self.weighting in ("q_fair", "agnostic", "adaptive")

    @property
    def least_clients(self) -> int:
        """The smallest number of updates of one round that the rule can work with."""
        match self.rule:
            case "mean" | "plugin":  # a plug-in refuses by itself what is too few for it
                return 1
            case "trimmed_mean":
                return 2 * self.assumed_attackers + 1
            case "multi_krum":
                return 2 * self.assumed_attackers + 3
            case _:
                return 3  # of two numbers, the middle is their mean, and the shorter length is the median

    def counted(self, updates: int) -> int:
        """Returns how many updates of a round reach the next version: with multi_krum fewer than all.

        updates: number of updates of the round, at least `least_clients`.
        """
        return updates - self.assumed_attackers if self.rule == "multi_krum" else updates

    def problems(self, min_clients: int, *, limits_members: bool) -> list[str]:
        """Returns what a run spec must set for the rule, for each setting that does not fit.

        min_clients: round.min_clients of the spec. limits_members: whether the spec limits weights and lengths of updates.
        """
        if self.rule == "mean":
            return []
        problems = []
        if not limits_members:
            problems.append("format = pluralllm.run/3, because without its bound one weight may outweigh all others")
        if min_clients < self.least_clients:
            problems.append(f"round.min_clients to at least {self.least_clients}")
        if self.rule == "multi_krum" and self.weighting != "uniform":
            problems.append("aggregation.weighting = uniform, because distances choose the updates and know no weights")
        return problems
