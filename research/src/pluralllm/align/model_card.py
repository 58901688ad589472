"""Writes the model card, the file README.md in a model folder: purpose, score for each group, use, and limits."""

from collections.abc import Mapping
from typing import Any

from pluralllm.common.text.printable import printable
from pluralllm.common.words.context_gain import IGNORES_CONTEXT, gain_text, ignores_context, mean_gain
from pluralllm.common.words.noise import declared_text
from pluralllm.common.words.not_reported import not_reported_text
from pluralllm.common.words.predictors import FOURIER_KERNEL, KERNEL_SUMS, NEURAL_PROCESS, architecture_of

# What an architecture is, and what becomes of its updates.
KINDS = {
    NEURAL_PROCESS: ("a transformer neural process", "averaged"),
    FOURIER_KERNEL: ("Gaussian process regression on trained features", "averaged"),
    KERNEL_SUMS: ("Gaussian process regression on fixed features", "added up"),
}


def model_card(origin: Mapping[str, Any]) -> str:
    """Returns the model card as Markdown, with a header of metadata that the Hugging Face Hub reads.

    origin: the content of provenance.json, which describes how the model version was made.
    """
    spec, scores = origin["run_spec"], origin["scores"]
    embedding = spec["embedding"]
    templates = ", ".join(f"`{template}`" for template in embedding["templates"])
    kind, combined = KINDS[architecture_of(spec["predictor"])]
    return f"""---
library_name: transformers
tags: [pluralllm, reward-model, federated-learning]
---

# {_cell(spec["title"] or origin["run"])}, version {origin["version"]}

Predicts how a group of people would answer a question, from a few of the group's other answers: {kind},
trained jointly by {origin["participants"]} participants who kept their answers to themselves (PluralLLM,
arXiv 2503.09925). {origin["updates"]} updates are in it, {combined} in {origin["version"]} rounds.

## How well

Alignment score: 1 minus the mean Jensen-Shannon distance between predicted and true shares (natural logarithm: 1 is
perfect, 0.167 the worst). Training groups are scored on questions that nobody trained on, held-out groups were never
seen in training. Context gain: the score minus the score with uniform answers as the context.

{_table(origin) if scores else "This version was not scored."}

## Whose answers were protected

{_noise(origin)}

## How to use it

    pip install "pluralllm-research[align]"

    from pluralllm.align import GroupReward, PluralPredictor

    model = PluralPredictor.from_pretrained("this folder")
    reward = GroupReward(model, {{"My group": "answers.jsonl"}}, group="My group")
    trainer = trl.GRPOTrainer(policy, reward_funcs=reward, ...)

Give the trainer the object. It takes a folder or a name, as in `reward_funcs="this folder"`, for a sequence classifier,
which this model is not.

It reads vectors of `{embedding["model"]}` (revision `{embedding["revision"]}`), by the templates {templates}
(pooling {embedding["pooling"]}), cuts each text at {embedding["max_tokens"]} tokens,
and needs {spec["training"]["episodes"]["min_context"]} answered questions of the group; it was scored with
{spec["evaluation"]["context_questions"]}.

## What not to use it for

- It predicts a group's distribution of answers, not what any person thinks.
- A group that is unlike all that took part is predicted worse than the table says.
- It cannot tell apart options to which `{embedding["model"]}` gives equal vectors, as most English models do in other
  languages and scripts. `pluralllm score` says for how many of your questions this is so, and how many texts are cut.
- A reward is a prediction: a policy that is tuned hard against it finds its mistakes. Score the policy against real
  answers.

## Where it comes from

Run `{origin["run"]}`, record `{origin["record"]["record_sha256"]}`,
weights `{origin["record"]["digest"]}`; run spec and lineage: provenance.json.
"""


def _noise(origin: Mapping[str, Any]) -> str:
    """Returns what the participants declared about the noise in their answers; a model of an earlier release has no such list."""
    rows = "\n".join(f"| {_cell(one['group'])} | {declared_text(one['declared'])} |" for one in origin.get("noise", ()))
    if not rows:
        return "What the participants declared about noise in their answers is not on record."
    return (
        "Noise protects single respondents: epsilon is the most that all releases of a group's answers together tell about one\n"
        f"of them. The participants declare it, and nobody has checked it.\n\n| group | declared |\n|---|---|\n{rows}"
    )


def _table(origin: Mapping[str, Any]) -> str:
    """Returns the table of each group's score, and a sentence about fairness over the groups that report their scores."""
    scores = origin["scores"]
    head = "| group | role | alignment score | base 2 | context gain | questions |\n|---|---|---|---|---|---|"
    rows = "\n".join(_row(score) for score in scores)
    reported = [score for score in scores if score["alignment_score"] is not None]
    if not reported:
        return f"{head}\n{rows}\n\nNo group reports its score."
    worst = min(reported, key=lambda score: score["alignment_score"])
    over = f"{len(reported)} of {len(scores)} groups" if len(reported) < len(scores) else f"{len(scores)} groups"
    gain = mean_gain(score.get("context_gain") for score in reported)
    warning = f" Mean context gain {gain_text(gain)}: **{IGNORES_CONTEXT}**." if ignores_context(gain) else ""
    return (
        f"{head}\n{rows}\n\nOver {over}: fairness index {origin['fairness_index']:.4f}, coefficient of variation "
        f"{origin['coefficient_of_variation']:.4f}; worst group {_cell(worst['group'])}. "
        f"The two say how evenly groups are served; the context gain says whether predictions follow the group.{warning}"
    )


def _row(score: Mapping[str, Any]) -> str:
    head = f"| {_cell(score['group'])} | {score['role'].replace('_', ' ')}"
    if score["alignment_score"] is None:
        return f"{head} | {_cell(not_reported_text(score['not_reported']))} | | | |"
    numbers = f"{score['alignment_score']:.4f} | {score['alignment_score_base2']:.4f} | {gain_text(score.get('context_gain'))}"
    return f"{head} | {numbers} | {score['questions']} |"


def _cell(text: str) -> str:
    return printable(text.replace("\n", " ")).replace("|", "\\|")
