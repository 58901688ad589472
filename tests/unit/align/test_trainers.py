"""Models and rewards in the hands of trainers: half precision, shards, threads, copies for workers, numbers as options."""

import copy
import json
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.exported_model import export
from support.points import random_points, random_shares
from support.process_harness import process_spec
from support.small_survey import KERNEL

from pluralllm.align import AggregateReward, FederatedReward, GroupReward, PluralPredictor
from pluralllm.align import federated_reward as federated
from pluralllm.align.answers import text_of
from pluralllm.align.model_folder import CONFIG
from pluralllm.align.verl_reward import compute_score, compute_score_batch
from pluralllm.client.data.sample_survey import sample_groups
from pluralllm.common.errors.tree import InvalidArgument, InvalidModel
from pluralllm.common.words.questions import Question
from pluralllm.common.words.reward_weights import RewardAggregation
from pluralllm.operator.remote import Remote

SURVEY: dict[str, tuple[Question, ...]] = {str(name): found for name, found in sample_groups(2, 40, 0).items()}
NAMES = list(SURVEY)
ASKED = SURVEY[NAMES[0]][20:28]


def reward_of(place: Path, model: Any = None, **choices: Any) -> GroupReward:
    contexts = {name: SURVEY[name][:20] for name in NAMES}
    settings = {"embedding_model_path": place / "tiny", "cache": place / "cache", "device": "cpu", **choices}
    return GroupReward(place / "model" if model is None else model, contexts, **settings)


def rewards(reward: Any, **columns: Any) -> list[float | None]:
    given: Mapping[str, Any] = {"prompts": [q.text for q in ASKED], "completions": ["A"] * len(ASKED)}
    returned: list[float | None] = reward(
        **{**given, "options": [q.options for q in ASKED], "group": [NAMES[0]] * len(ASKED), **columns}
    )
    return returned


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [{}, {**KERNEL, "features": 40}], ids=["tnp-d/1", "fourier-kernel/1"])
def test_a_model_in_half_precision_predicts_nearly_the_same(kind: dict[str, Any], dtype: Any, tmp_path: Path) -> None:
    folder = export(tmp_path / "model", process_spec(training={"episodes": {"min_context": 5}}, predictor=kind))
    whole, half = PluralPredictor.from_pretrained(folder), PluralPredictor.from_pretrained(folder, dtype=dtype)
    context, targets = (random_points(1, count, 32, options=3, templates=2) for count in (6, 3))
    shares = random_shares(context)
    exact = whole(context, shares, targets).mean
    assert half.dtype == dtype
    assert half(context, shares.to(dtype), targets).mean.tolist()[0] == pytest.approx(exact.tolist()[0], abs=0.03)
    half(context, shares, targets).mean.sum().backward()
    assert any(weight.grad is not None for weight in half.parameters()), "it can be tuned"
    half.save_pretrained(tmp_path / "half")
    assert PluralPredictor.from_pretrained(tmp_path / "half", dtype=dtype).dtype == dtype


def test_a_reward_takes_a_model_in_half_precision_and_leaves_it_so(place: Path) -> None:
    half = PluralPredictor.from_pretrained(place / "model").to(torch.bfloat16)
    assert rewards(reward_of(place, half)) == pytest.approx(rewards(reward_of(place)), abs=0.02)
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("options", "loading"),
    [
        ({"max_shard_size": 4000}, {}),
        ({"variant": "fp16"}, {"variant": "fp16"}),
        ({"max_shard_size": 4000, "variant": "fp16"}, {"variant": "fp16"}),
    ],
)
def test_weights_in_shards_or_variants_are_loaded_and_their_digests_hold(
    place: Path, tmp_path: Path, options: dict[str, Any], loading: dict[str, Any]
) -> None:
    model = PluralPredictor.from_pretrained(place / "model")
    model.save_pretrained(tmp_path, **options)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 1 or "max_shard_size" not in options
    again = PluralPredictor.from_pretrained(tmp_path, **loading)
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), again.parameters(), strict=True))
    if loading:
        with pytest.raises(InvalidModel, match="no whole set of weights"):
            PluralPredictor.from_pretrained(tmp_path)
    raw = bytearray(files[-1].read_bytes())
    raw[-1] ^= 1
    files[-1].write_bytes(raw)
    with pytest.raises(InvalidModel, match="it was changed"):
        PluralPredictor.from_pretrained(tmp_path, **loading)


def test_a_set_of_shards_that_is_not_whole_is_refused(place: Path, tmp_path: Path) -> None:
    PluralPredictor.from_pretrained(place / "model").save_pretrained(tmp_path, max_shard_size=4000)
    config = json.loads((tmp_path / CONFIG).read_text())
    config["weights_files"].popitem()
    (tmp_path / CONFIG).write_text(json.dumps(config))
    with pytest.raises(InvalidModel, match="no whole set of weights"):
        PluralPredictor.from_pretrained(tmp_path)


def test_eight_threads_get_the_rewards_that_one_gets(place: Path, tmp_path: Path) -> None:
    alone = rewards(reward_of(place))
    shared = reward_of(place, cache=tmp_path)
    with ThreadPoolExecutor(8) as pool:
        several = [*pool.map(lambda _: rewards(shared, completions=["A"] * 7 + ["no idea"]), range(16))]
    assert all(one == pytest.approx([*alone[:7], None]) for one in several)
    assert shared.unscored.total() == 16


def test_one_thread_at_a_time_is_let_into_the_embedding_and_the_model(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite and the model serve one thread at a time; the second thread comes while the first one is inside."""
    reward, inside, entered = reward_of(place), list[int](), threading.Event()
    predicted = GroupReward._predicted

    def watched(self: GroupReward, keys: Any, numbers: Any) -> Any:
        inside.append(len(inside))
        assert not entered.is_set(), "two threads are inside"
        entered.set()
        second.start()
        second.join(0.05)  # would be through by now
        entered.clear()
        monkeypatch.undo()
        return predicted(self, keys, numbers)

    returned: list[list[float | None]] = []
    second = threading.Thread(target=lambda: returned.append(rewards(reward)))
    monkeypatch.setattr(GroupReward, "_predicted", watched)
    first = rewards(reward)
    second.join(10)
    assert (len(inside), returned) == (1, [first])


def test_rewards_travel_to_another_process_and_open_again_what_cannot(
    place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    reward = reward_of(place)
    rewards(reward, completions=["no idea"] * 8)
    again = copy.deepcopy(reward)  # as pickle makes it
    assert rewards(again) == pytest.approx(rewards(reward))
    assert again.unscored == reward.unscored
    adaptive = AggregateReward(reward, RewardAggregation(rule="adaptive"))
    rewards(adaptive)
    travelled = copy.deepcopy(adaptive)
    assert travelled.state_dict() == adaptive.state_dict()
    assert rewards(travelled) == pytest.approx(rewards(adaptive))
    opened = list[Path]()

    def connected(folder: Path) -> object:
        opened.append(folder)
        return threading.Lock()  # cannot be copied, as a connection

    monkeypatch.setattr(federated, "_connected", connected)
    copied = copy.deepcopy(FederatedReward(tmp_path, "tuning"))
    assert (copied.__name__, opened) == ("federated_tuning", [tmp_path, tmp_path])


def test_an_open_connection_does_not_travel_and_says_what_to_give() -> None:
    class Open(Remote):
        def __init__(self) -> None: ...

    with pytest.raises(InvalidArgument, match="give the folder"):
        copy.deepcopy(FederatedReward(Open(), "tuning"))


def test_options_and_answers_may_be_numbers(place: Path) -> None:
    reward = reward_of(place, group=NAMES[0])

    def of(options: Any, *answers: Any) -> list[float | None]:
        """The rewards of answers to one question."""
        prompts, listed = ["How many?"] * len(answers), [options] * len(answers)
        returned: list[float | None] = reward(prompts=prompts, completions=answers, options=listed)
        return returned

    as_texts = of(["1", "5"], "5")
    for options in ([1, 5], np.array([1, 5]), (np.int64(1), 5.0), [1.0, np.float32(5)]):
        assert of(options, 5, np.int64(5), 5.0, "5") == as_texts * 4
    assert of([True, False], True, "true") == of(["True", "False"], "True") * 2
    assert [text_of(number) for number in list[Any]((5.5, np.float64(2.5), -1))] == ["5.5", "2.5", "-1"]


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"options": [None] * 7 + ["Yes"]}, r"options\[7\].*give a list"),
        ({"options": [[1, float("nan")]] * 8}, r"options\[1\].*give a text"),
        ({"completions": ["A"] * 7 + [None]}, r"completions\[7\].*give a text"),
        ({"prompts": [{"a": 1}] + ["A"] * 7}, r"prompts\[0\].*give a text"),
    ],
)
def test_what_is_neither_text_nor_number_is_named_with_its_row(place: Path, columns: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidArgument, match=told):
        rewards(reward_of(place), **columns)


def verl_settings(place: Path) -> dict[str, Any]:
    contexts = {NAMES[0]: SURVEY[NAMES[0]][:20]}
    return {
        **{"model": str(place / "model"), "contexts": contexts, "device": "cpu"},
        **{"embedding_model_path": str(place / "tiny"), "cache": str(place / "cache")},
    }


def test_verl_calls_it_as_verl_does(place: Path) -> None:
    """The keywords are those of naive.py (0df61dc5) and batch.py (0ffc057d) in verl/workers/reward_manager of volcengine/verl.

    verl itself is not installed here. Those files do not show `reward_router_address`; it stands for what newer ones may add.
    """
    expected, settings = rewards(reward_of(place)), verl_settings(place)
    asked = [{"question": q.text, "options": list(q.options), "index": n} for n, q in enumerate(ASKED)]
    one = compute_score(
        data_source="survey",
        solution_str="A",
        ground_truth="",
        extra_info=asked[0],
        reward_router_address=None,
        **settings,
    )
    assert type(one) is float
    assert one == pytest.approx(expected[0])
    many = compute_score_batch(
        data_sources=["survey"] * 8,
        solution_strs=["A"] * 7 + ["no idea"],
        ground_truths=[""] * 8,
        extra_infos=asked,
        **settings,
    )
    assert many == pytest.approx([*expected[:7], 0.0])


def test_verls_row_without_a_question_is_refused_with_what_to_add(place: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"extra_info.*question"):
        compute_score("survey", "A", "", None, **verl_settings(place))
    with pytest.raises(InvalidArgument, match=r"reward_kwargs.*models"):
        compute_score("survey", "A", "", {"question": "q"}, models="x", **verl_settings(place))
