"""Tunes a tiny language model for three groups that disagree: with the mean of their rewards, and with a fair rule.

    .venv/bin/python deploy/examples/grpo_many_groups.py [--model FOLDER] [--seeds 3]

The script works like grpo.py, but combines the rewards of three groups into one reward. Two of the groups have similar
opinions and the third does not, so the mean serves the third group worst. The adaptive rule gives a group more weight if its
rewards have been low so far (arXiv 2604.04261).
"""

import json
import tempfile
from pathlib import Path

from grpo import (
    CONTEXT,
    Survey,
    alignment,
    drawn,
    group_reward,
    made_up_survey,
    options,
    policy_that_answers,
    predictor,
    tuned,
)
from transformers.utils.logging import disable_progress_bar

from pluralllm.align import AggregateReward, PluralPredictor
from pluralllm.common.predictor.metrics import fairness_index
from pluralllm.common.words.reward_weights import RewardAggregation

WHO = ("Harbourland", "Riverton", "Old Valley")
RULES = {"mean": RewardAggregation(), "adaptive": RewardAggregation(rule="adaptive", temperature=0.02)}


def tune_for_all(
    model: PluralPredictor, survey: Survey, seed: int, steps: int, folder: Path, cache: Path
) -> dict[str, dict[str, float]]:
    """Tunes one policy with each aggregation rule; returns each group's alignment with the policy, by rule and group."""
    contexts = {name: drawn(survey[name], CONTEXT) for name in WHO}
    true = {name: {question.text: question for question in survey[name]} for name in WHO}
    in_contexts = {question.text for context in contexts.values() for question in context}
    texts = (
        set.intersection(*(set(answers) for answers in true.values())) - in_contexts
    )  # all groups have answered them
    asked = {name: [true[name][text] for text in sorted(texts)] for name in WHO}
    questions = asked[WHO[0]]
    tokenizer, start = policy_that_answers(questions, seed, folder / f"policy-{seed}")
    rewards = group_reward(model, contexts, cache)
    policies = {
        rule: tuned(start, tokenizer, questions, AggregateReward(rewards, settings), seed, steps)
        for rule, settings in RULES.items()
    }
    return {
        rule: {name: alignment(policy, tokenizer, asked[name]) for name in WHO} for rule, policy in policies.items()
    }


def main() -> None:
    arguments = options(__doc__).parse_args()
    disable_progress_bar()
    survey = made_up_survey()
    scores_of_seeds = []
    with tempfile.TemporaryDirectory() as folder:
        work_folder = Path(folder)
        cache = arguments.cache or work_folder / "cache"
        model = predictor(arguments.model, survey, arguments.rounds, work_folder, cache)
        if arguments.save:
            model.save_pretrained(arguments.save)
        for seed in range(arguments.seeds):
            scores = tune_for_all(model, survey, seed, arguments.steps, work_folder, cache)
            scores_of_seeds.append(scores)
            for rule, by_group in scores.items():
                worst = min(by_group, key=lambda name: by_group[name])
                mean, fairness = sum(by_group.values()) / len(by_group), fairness_index(tuple(by_group.values()))
                group_scores = ", ".join(f"{name} {score:.3f}" for name, score in by_group.items())
                print(
                    f"seed {seed}, {rule}: worst {by_group[worst]:.3f} ({worst}), mean {mean:.3f}, "
                    f"fairness {fairness:.4f}; {group_scores}"
                )
    if arguments.out:
        arguments.out.write_text(json.dumps(scores_of_seeds, indent=2))


if __name__ == "__main__":
    main()
