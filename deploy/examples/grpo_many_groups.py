"""A tiny language model tuned for three groups at once, who do not agree: by the mean of their rewards, or fairly.

    .venv/bin/python deploy/examples/grpo_many_groups.py [--model FOLDER] [--seeds 3]

As grpo.py, with the rewards of three groups as one. Two of them think much alike and the third does not: the mean serves
it worst. The adaptive rule weighs each group by how well it has been served so far (arXiv 2604.04261).
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
    model: PluralPredictor, survey: Survey, seed: int, steps: int, place: Path
) -> dict[str, dict[str, float]]:
    """Each group's alignment with the policy: before, and after either rule."""
    contexts = {name: drawn(survey[name], CONTEXT) for name in WHO}
    true = {name: {question.text: question for question in survey[name]} for name in WHO}
    known = {question.text for context in contexts.values() for question in context}
    texts = (
        set.intersection(*(set(each) for each in true.values())) - known
    )  # what all have answered, and no reward knows
    asked = {name: [true[name][text] for text in sorted(texts)] for name in WHO}
    questions = asked[WHO[0]]
    tokenizer, start = policy_that_answers(questions, seed, place / f"policy-{seed}")
    rewards = group_reward(model, contexts, place)
    policies = {
        rule: tuned(start, tokenizer, questions, AggregateReward(rewards, settings), seed, steps)
        for rule, settings in RULES.items()
    }
    return {
        rule: {name: alignment(policy, tokenizer, asked[name]) for name in WHO} for rule, policy in policies.items()
    }


def main() -> None:
    given = options(__doc__).parse_args()
    disable_progress_bar()
    survey = made_up_survey()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        model = predictor(given.model, survey, given.rounds, place)
        for seed in range(given.seeds):
            scores = tune_for_all(model, survey, seed, given.steps, place)
            found.append(scores)
            for rule, of in scores.items():
                worst = min(of, key=lambda name: of[name])
                mean, fairness = sum(of.values()) / len(of), fairness_index(tuple(of.values()))
                each = ", ".join(f"{name} {score:.3f}" for name, score in of.items())
                print(
                    f"seed {seed}, {rule}: worst {of[worst]:.3f} ({worst}), mean {mean:.3f}, fairness {fairness:.4f}; {each}"
                )
    if given.out:
        given.out.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
