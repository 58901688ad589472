"""The differences between a run and what a policy allows without asking. The functions only compare values.

The settings of a run decide how much an update shows. One step of plain gradient descent with one context question, for example,
makes an update from which the coordinator computes nearly every answer of the group. The settings of the presets were examined
for this, so a run with other settings waits for the consent of the partner.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from pluralllm.client.disclosure.policy import ANY_SPEC, Policy
from pluralllm.common.words.names import TaskKind
from pluralllm.common.words.spec import GroupRole, RunSpec, merge, preset_values

# The tables of the run spec that must agree with a preset, with the fields that need not. The number of rounds, the round
# policy, the aggregation and the seed do not change what one update shows: the client mixes its own secret into every seed.
COMPARED: Mapping[str, frozenset[str]] = {
    "predictor": frozenset(),
    "training": frozenset(),
    "evaluation": frozenset({"holdout_share"}),  # the share has a rule of its own: it is fixed for the private file
    # The policy has keys for the model and for a plug-in's package; the vectors' length and the probes follow from them. The
    # options of a plug-in are compared by _compared.
    "embedding": frozenset({"model", "revision", "dimension", "probes", "plugin"}),
}
DEFAULT, EARLIER_DEFAULT = "default", "attention"  # names of presets: the second was the default of earlier releases
MAX_SHOWN = 48  # characters of a value in one line of an error
MAX_LINE = 220  # characters of all differences in one error: the coordinator keeps 400 of the whole text

SETTINGS_SHOW = (
    "The presets were examined for how much an update shows of the private answers, these settings were not. At worst the "
    "coordinator can compute every answer of this group from one update."
)
SMALL_ROUNDS_SHOW = (
    "From a model that one client made, anybody who reads the model learns this group's update. From a model that two clients "
    "made, each of them learns the update of the other."
)
REWARDS_SHOW = (
    "Each reward shows how the model expects this group to answer a question. From many rewards the views of the group can be "
    "read."
)
HELD_OUT_SHOW = (
    "This client trains, and this run scores all of its questions. Together with the scores of other runs, which leave out the "
    "questions that it trains on, this shows scores of these questions."
)
PLAIN_ROUNDS_SHOW = (
    "In plain rounds the coordinator reads each single update. From one update it can name this group and compute some of its "
    "answers, unless they are noised. So few clients cannot hide an update from each other, therefore this run is plain."
)
AGGREGATOR_SHOWS = (
    "The code of this package makes the models from the updates, on the coordinator's machine, and it is no part of PluralLLM. "
    "At worst a published model is this group's update, which everybody who reads the model learns. `min_cohort` holds all the "
    "same: if the package says that it has chosen fewer updates, this client leaves the run."
)
REWARDS_FIELD = "rewards"
SMALL_RUN = 3  # clients; a run of so few is plain by default


@dataclass(frozen=True, slots=True)
class Difference:
    """One value in a run that the policy does not allow without consent. All texts are printable."""

    field: str  # of the run spec, for example training.local_steps
    asked: str  # value that the run asks for
    allowed: str  # value that is allowed without consent
    rule: str  # key of policy.toml, and the preset that was compared; or another rule of the client
    danger: str  # the sentence that the partner consents to

    @property
    def text(self) -> str:
        """The difference as one line, with the whole values."""
        return f"{self.field} is {self.asked}, allowed is {self.allowed} ({self.rule})"

    @property
    def short_text(self) -> str:
        """The difference as one line, with long values cut."""
        return f"{self.field} is {_cut(self.asked)}, allowed is {_cut(self.allowed)} ({self.rule})"


def differences_of_task(
    policy: Policy, group: str, role: GroupRole, spec: RunSpec, kind: TaskKind
) -> tuple[Difference, ...]:
    """Returns everything in a task of a run that needs the partner's consent; an empty tuple if nothing does.

    group, role: this client's group and its own role. kind: kind of the task.
    """
    others = (*differences_of(policy, spec), *held_out_difference(policy, group, role, spec))
    # A run begins with an evaluation. The partner is asked once, about the training that follows as well.
    trains_later = bool(others) and spec.rewards is None and spec.groups.role_of(group, role) is GroupRole.TRAIN
    if kind is TaskKind.TRAIN or trains_later:
        return (*others, *plain_rounds_difference(policy, spec))
    return others


def differences_of(policy: Policy, spec: RunSpec) -> tuple[Difference, ...]:
    """Returns everything in a run spec that needs the partner's consent; an empty tuple if nothing does.

    A rule about another danger gets its function here, with one Difference for each value to consent to.
    """
    return (*_small_rounds(policy, spec), *_aggregator(policy, spec), *_rewards(policy, spec), *_settings(policy, spec))


def is_small(spec: RunSpec) -> bool:
    """Returns whether a run has so few clients in a round that it is plain by default."""
    return spec.round.target_clients <= SMALL_RUN


def held_out_difference(policy: Policy, group: str, role: GroupRole, spec: RunSpec) -> tuple[Difference, ...]:
    """Returns a difference if the run spec holds a group out that trains by its own role: all its questions would be scored."""
    role_in_run = spec.groups.role_of(group, role)
    if role_in_run in (role, None) or spec.rewards is not None or ANY_SPEC in policy.allowed_presets:
        return ()
    return (Difference("groups.held_out", json_text(group), f"role {role}", "own role of this client", HELD_OUT_SHOW),)


def plain_rounds_difference(policy: Policy, spec: RunSpec) -> tuple[Difference, ...]:
    """Returns a difference if a run that trains has plain rounds of few clients, and the policy demands private rounds.

    A plain run of more clients needs no consent: limits.py forbids it.
    """
    if spec.private_rounds is not None or not is_small(spec) or policy.private_rounds.rounds != "required":
        return ()
    rule = '[private_rounds] rounds = "required"'
    return (Difference("private_rounds", "absent", "private rounds", rule, PLAIN_ROUNDS_SHOW),)


def summary(differences: tuple[Difference, ...]) -> str:
    """Returns as many differences as fit into the text of one error, and the number of the others."""
    lines: list[str] = []
    for difference in differences:
        text = difference.short_text
        if lines and sum(map(len, lines)) + len(text) > MAX_LINE:
            return f"{'; '.join(lines)}; and {len(differences) - len(lines)} more"
        lines.append(text)
    return "; ".join(lines)


def json_text(value: object) -> str:
    """Returns a value of the run spec as ASCII text without control characters, so that it cannot change a terminal's screen."""
    return json.dumps(value)


def _small_rounds(policy: Policy, spec: RunSpec) -> Iterator[Difference]:
    """Yields a difference if a version may be made from fewer updates than the policy demands."""
    counted = spec.aggregation.counted(spec.round.min_clients)
    if counted < policy.min_cohort:
        asked, allowed = str(counted), f"at least {policy.min_cohort}"
        if counted < spec.round.min_clients:
            asked = f"{spec.round.min_clients}, of which {counted} count"
        yield Difference("round.min_clients", asked, allowed, "min_cohort", SMALL_ROUNDS_SHOW)


def _aggregator(policy: Policy, spec: RunSpec) -> Iterator[Difference]:
    """Yields a difference if another package makes the models from updates, and the policy does not allow this package."""
    plugin = spec.aggregation.plugin
    if plugin is not None and not plugin.is_among(policy.allowed_aggregators):
        asked, allowed = f"{plugin.name} of {plugin.requirement}", "the rules of this release"
        yield Difference("aggregation.plugin", asked, allowed, "allowed_aggregators", AGGREGATOR_SHOWS)


def _rewards(policy: Policy, spec: RunSpec) -> Iterator[Difference]:
    """Yields a difference if the run asks for rewards: many rewards show the group's views, whatever the settings are."""
    if spec.rewards is not None and ANY_SPEC not in policy.allowed_presets:
        yield Difference(REWARDS_FIELD, "asked for", "no rewards", "allow_rewards, for each run", REWARDS_SHOW)


def _settings(policy: Policy, spec: RunSpec) -> tuple[Difference, ...]:
    """Returns the differences from the nearest allowed preset: the preset with the fewest differences."""
    if ANY_SPEC in policy.allowed_presets or (spec.sums is not None and policy.allow_sums):  # which says the worst
        return ()
    if not policy.allowed_presets:
        return (Difference("settings", "any", "none", "allowed_presets", SETTINGS_SHOW),)
    return min((tuple(_from_preset(spec, preset)) for preset in _allowed(policy)), key=len)


def _allowed(policy: Policy) -> tuple[str, ...]:
    """Returns the presets that the policy allows, with the earlier default if the policy names the default.

    A policy that was written for an earlier release means these settings by "default", and runs with them may still go on.
    """
    return tuple(dict.fromkeys((*policy.allowed_presets, *(EARLIER_DEFAULT,) * (DEFAULT in policy.allowed_presets))))


def _from_preset(spec: RunSpec, preset: str) -> Iterator[Difference]:
    """Yields each compared field whose value is not the preset's. The fields are in the order of the run spec."""
    asked, allowed, rule = _compared(spec), _compared(_preset_spec(preset)), f"allowed_presets: {preset}"
    for field in dict.fromkeys((*asked, *allowed)):
        values = asked.get(field), allowed.get(field)
        if values[0] != values[1]:
            yield Difference(field, json_text(values[0]), json_text(values[1]), rule, SETTINGS_SHOW)


@cache
def _preset_spec(preset: str) -> RunSpec:
    """Returns a run spec with all values of a preset. The embedding model is a placeholder."""
    values = preset_values(preset)
    model = {"model": "any", "dimension": len(values["embedding"]["templates"])}
    return RunSpec.model_validate(merge(values, {"embedding": model}))


def _compared(spec: RunSpec) -> dict[str, Any]:
    """Returns the compared values of a run spec by the names of their fields, for example training.episodes.max_context."""
    values = spec.model_dump(mode="json", include=set(COMPARED))
    # run/1 lets one update make nearly the whole model. run/2 differs from the presets' run/3 only in the rule that chooses the
    # withheld questions: nothing that a run could choose freely.
    compared: dict[str, Any] = {"format": spec.format if spec.format == "pluralllm.run/1" else "pluralllm.run/3"}
    for table, left_out in COMPARED.items():
        compared |= dict(_leaves(table, {key: value for key, value in values[table].items() if key not in left_out}))
    if spec.embedding.plugin is not None:
        compared |= {f"embedding.plugin.options.{key}": text for key, text in spec.embedding.plugin.options.items()}
    return compared


def _leaves(name: str, table: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _leaves(f"{name}.{key}", value)
        else:
            yield f"{name}.{key}", value


def _cut(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."
