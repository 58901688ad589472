"""TRL's own trainers use the rewards and the pairs without adaptation."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from support.exported_model import export
from support.process_harness import tiny_embedding_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import (  # type: ignore[attr-defined]
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    RLOOConfig,
    RLOOTrainer,
)

from pluralllm.align import AggregateReward, GroupReward
from pluralllm.align.scoring import write_pairs
from pluralllm.client.data.sample_survey import sample_groups
from pluralllm.common.words.questions import Question
from pluralllm.common.words.reward_weights import RewardAggregation

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]
SURVEY: dict[str, tuple[Question, ...]] = {str(name): found for name, found in sample_groups(3, 40, 0).items()}
GROUP, OTHER, _ = SURVEY
ASKED = SURVEY[GROUP][20:28]
LETTERS = "ABCDE"
EXAMPLES = Path(__file__).parents[2] / "deploy" / "examples"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A predictor, its embedding model, and a policy of two small layers with a word for each token."""
    folder = tmp_path_factory.mktemp("trl")
    export(folder / "model")
    tiny_embedding_model(folder / "tiny")
    words = [
        "<pad>",
        "</s>",
        "<unk>",
        *LETTERS,
        *(word for q in ASKED for word in f"{q.text} {' '.join(q.options)}".split()),
    ]
    tokenizer = Tokenizer(WordLevel({word: n for n, word in enumerate(dict.fromkeys(words))}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(folder / "policy")
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(fast), max_position_embeddings=64, pad_token_id=0, eos_token_id=1, **size)
    LlamaForCausalLM(config).save_pretrained(folder / "policy")
    return folder


@pytest.fixture(scope="module")
def reward(place: Path) -> GroupReward:
    contexts = {name: SURVEY[name][:20] for name in (GROUP, OTHER)}
    return GroupReward(
        place / "model",
        contexts,
        no_option=0.0,
        embedding_model_path=place / "tiny",
        cache=place / "cache",
        device="cpu",
    )


def rows(group: str | None = None) -> Dataset:
    return Dataset.from_list(
        [
            {"prompt": question.text, "options": list(question.options), **({} if group is None else {"group": group})}
            for question in ASKED
        ]
    )


def settings(kind: Any, place: Path, **more: Any) -> Any:
    return kind(
        output_dir=str(place / kind.__name__),
        max_steps=2,
        per_device_train_batch_size=8,
        use_cpu=True,
        bf16=False,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        **more,
    )


def tokenizer_of(place: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(place / "policy")


@pytest.mark.parametrize(("trainer", "config"), [(GRPOTrainer, GRPOConfig), (RLOOTrainer, RLOOConfig)])
def test_a_group_column_says_whose_reward_each_example_has(
    place: Path, reward: GroupReward, trainer: Any, config: Any
) -> None:
    running_trainer = trainer(
        model=str(place / "policy"),
        reward_funcs=[reward],
        args=settings(config, place, num_generations=4, max_completion_length=2),
        train_dataset=rows(GROUP),
        processing_class=tokenizer_of(place),
    )
    running_trainer.train()
    logged = [entry for entry in running_trainer.state.log_history if f"rewards/{reward.__name__}/mean" in entry]
    assert len(logged) == 2
    assert all(0 <= entry[f"rewards/{reward.__name__}/mean"] <= 1 for entry in logged)


def test_an_aggregate_of_groups_is_a_reward_and_its_state_comes_back(place: Path, reward: GroupReward) -> None:
    adaptive = AggregateReward(reward, RewardAggregation(rule="adaptive"))
    trainer = GRPOTrainer(
        model=str(place / "policy"),
        reward_funcs=adaptive,
        args=settings(GRPOConfig, place, num_generations=4, max_completion_length=2),
        train_dataset=rows(),
        processing_class=tokenizer_of(place),
    )
    trainer.train()
    state = adaptive.state_dict()
    assert set(state["history"]) == {GROUP, OTHER}
    again = AggregateReward(reward, RewardAggregation(rule="adaptive"))
    again.load_state_dict(json.loads(json.dumps(state)))
    rollouts: dict[str, Any] = {"prompts": [ASKED[0].text], "completions": ["A"], "options": [list(ASKED[0].options)]}
    assert again(**rollouts) == adaptive(**rollouts)
    assert again.weights == adaptive.weights


def test_dpo_takes_the_pairs_a_predictor_ranks(place: Path, reward: GroupReward) -> None:
    source, out = place / "in.jsonl", place / "pairs.jsonl"
    source.write_text("".join(json.dumps({"prompt": q.text, "options": q.options}) + "\n" for q in ASKED))
    alone = GroupReward(
        place / "model",
        {GROUP: SURVEY[GROUP][:20]},
        embedding_model_path=place / "tiny",
        cache=place / "cache",
        device="cpu",
    )
    write_pairs(alone, source, out, 0.0, every=True, seen=lambda _: None)
    pairs = Dataset.from_json(str(out))
    assert {"prompt", "chosen", "rejected"} <= set(pairs.column_names)
    trainer = DPOTrainer(
        model=str(place / "policy"),
        args=settings(DPOConfig, place),
        train_dataset=pairs,
        processing_class=tokenizer_of(place),
    )
    trainer.train()
    assert trainer.state.global_step == 2


def test_the_examples_run_and_one_takes_the_predictor_of_the_other(tmp_path: Path) -> None:
    """Runs the examples with few rounds and steps; benchmarks/RESULTS.md has the results of full runs.

    The first one trains a predictor and keeps it, which takes most of the time; the second one loads it.
    """
    model, shared = tmp_path / "predictor", ["--steps", "1", "--cache", str(tmp_path / "cache")]
    for example, more in (
        ("grpo.py", ["--rounds", "1", "--save", str(model)]),
        ("grpo_many_groups.py", ["--model", str(model)]),
    ):
        out = tmp_path / f"{example}.json"
        command = [sys.executable, str(EXAMPLES / example), *shared, *more, "--out", str(out)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
        assert done.returncode == 0, done.stderr
        assert "seed 0" in done.stdout
        assert len(json.loads(out.read_text())) == 1
