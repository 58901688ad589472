"""The reward of a group, called as TRL calls reward functions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.exported_model import export
from support.process_harness import process_spec

from pluralllm.align import GroupReward, PluralPredictor
from pluralllm.align.commands.scoring import pairs, score
from pluralllm.align.ranks import Ranks
from pluralllm.align.rollouts import Columns, read_rollouts
from pluralllm.client.data.private_data import write_group
from pluralllm.client.data.sample_survey import sample_groups
from pluralllm.common.errors.tree import (
    EmbeddingMismatch,
    InvalidArgument,
    InvalidData,
    ModelUnavailable,
    TooFewQuestions,
)
from pluralllm.common.predictor.model import new_predictor
from pluralllm.common.words.questions import Question
from pluralllm.common.words.spec import PRESETS, RunSpec, merge, preset_values

SURVEY: dict[str, tuple[Question, ...]] = {str(name): found for name, found in sample_groups(3, 40, 0).items()}
NAMES = list(SURVEY)


@pytest.fixture(scope="module")
def model(place: Path) -> PluralPredictor:
    return PluralPredictor.from_pretrained(place / "model")


def reward_of(place: Path, model: PluralPredictor, groups: Sequence[str] = NAMES[:1], **choices: Any) -> GroupReward:
    contexts = {name: SURVEY[name][:20] for name in groups}
    return GroupReward(
        model, contexts, embedding_model_path=place / "tiny", cache=place / "cache", device="cpu", **choices
    )


def shares_of(reward: GroupReward, group: str, question: Question) -> list[float]:
    return [float(share) for share in reward.predict([(group, question)])[group, question].shares]


def test_the_reward_is_the_predicted_share_of_the_option_that_is_named(place: Path, model: PluralPredictor) -> None:
    reward, asked = reward_of(place, model), SURVEY[NAMES[0]][20:23]
    rows = [(question, option) for question in asked for option in range(len(question.options))]
    rewards = reward(
        prompts=[f"Answer by a letter. {question.text}" for question, _ in rows],
        completions=["ABCDEFGH"[option] for _, option in rows],
        question=[question.text for question, _ in rows],
        options=[list(question.options) for question, _ in rows],
        completion_ids=[[0]] * len(rows),
        trainer_state=None,
    )
    predicted_shares = [share for question in asked for share in shares_of(reward, NAMES[0], question)]
    assert rewards == pytest.approx(predicted_shares, abs=1e-6)
    assert reward.__name__ == f"reward_{NAMES[0].lower()}"


def test_conversations_are_scored_as_plain_texts_are(place: Path, model: PluralPredictor) -> None:
    reward, question = reward_of(place, model), SURVEY[NAMES[0]][25]
    options = [list(question.options)]
    plain = reward([question.text], [question.options[1]], options=options)
    talked = reward(
        [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": question.text}]],
        [[{"role": "assistant", "content": question.options[1]}]],
        options=options,
    )
    assert plain == talked


def test_without_options_the_candidates_are_what_was_sampled_for_the_prompt(
    place: Path, model: PluralPredictor
) -> None:
    reward = reward_of(place, model)
    rewards = reward(["p", "p", "p", "q"], ["Agree", "Disagree", "Agree", "Agree"])
    candidates = Question("p", ("Agree", "Disagree"), (0.5, 0.5))
    agree, disagree = shares_of(reward, NAMES[0], candidates)
    assert rewards[:3] == pytest.approx([agree, disagree, agree], abs=1e-6)
    alone = Question("q", ("Agree",), (1.0,))
    assert rewards[3] == pytest.approx(float(reward.predict([(NAMES[0], alone)])[NAMES[0], alone].means[0]), abs=1e-6)


def test_each_example_may_have_a_group_of_its_own(place: Path, model: PluralPredictor) -> None:
    reward, question = reward_of(place, model, NAMES[:2]), SURVEY[NAMES[0]][25]
    both = reward([question.text] * 2, ["A", "A"], options=[question.options] * 2, group=NAMES[:2])
    alone = [
        reward_of(place, model, [name])([question.text], ["A"], options=[question.options])[0] for name in NAMES[:2]
    ]
    assert both == pytest.approx(alone, abs=1e-6)
    assert both[0] != both[1]


def test_only_completions_that_are_candidates_themselves_have_no_order() -> None:
    listed: dict[str, Any] = {"options": [("A", "B")] * 2}
    sampled: dict[str, Any] = {}
    for columns, positions in ((listed, (0.0, 1.0)), (sampled, (0.0, 0.0))):
        rollout = read_rollouts(["p", "p"], ["A", "B"], columns, Columns(), Ranks())[0]
        assert rollout.question is not None
        assert rollout.question.positions == positions


def test_a_cautious_reward_is_less_by_the_predicted_spread(place: Path, model: PluralPredictor) -> None:
    question = SURVEY[NAMES[0]][25]
    given: dict[str, Any] = {"prompts": [question.text], "completions": ["B"], "options": [question.options]}
    (plain,) = reward_of(place, model).score(**given)
    (cautious,) = reward_of(place, model, caution=0.5).score(**given)
    assert plain is not None
    assert cautious is not None
    assert plain.spread > 0
    assert cautious.reward == pytest.approx(plain.reward - 0.5 * plain.spread)


@pytest.mark.parametrize(
    "predictor",
    [
        {"architecture": "kernel-sums/1", "features": 40},
        {"architecture": "fourier-kernel/1", "features": 40, "group_rank": 2},
    ],
)
def test_caution_is_refused_where_the_spread_is_a_constant(
    place: Path, tmp_path: Path, predictor: dict[str, Any]
) -> None:
    spec = process_spec(predictor=predictor, aggregation={"weighting": "uniform"})
    constant = PluralPredictor.from_pretrained(export(tmp_path / "model", spec))
    question = SURVEY[NAMES[0]][25]
    asked: dict[str, Any] = {
        "prompts": [question.text] * 2,
        "completions": ["A", "B"],
        "options": [question.options] * 2,
    }
    scored = reward_of(place, constant).score(**asked)
    assert {round(one.spread, 4) for one in scored if one is not None} == {0.15}
    with pytest.raises(InvalidArgument, match=r"caution: has no effect.*presets attention and paper predict it"):
        reward_of(place, constant, caution=0.5)


def test_the_presets_that_the_refusal_of_caution_names_are_those_whose_models_predict_a_spread() -> None:
    predicting = []
    for name in PRESETS:
        spec = RunSpec.model_validate(merge(preset_values(name), {"embedding": {"model": "m", "dimension": 64}}))
        predicting += [name] if new_predictor(spec.predictor, spec.embedding).predicts_spread else []
    assert predicting == ["attention", "paper"]


def test_what_cannot_be_scored_is_none_and_counted_and_the_rest_is_scored(place: Path, model: PluralPredictor) -> None:
    reward, question = reward_of(place, model), SURVEY[NAMES[0]][25]
    logged: dict[str, float] = {}
    rewards = reward(
        [question.text, question.text, question.text, ""],
        ["A", "  ", "no answer at all", "A"],
        options=[question.options] * 4,
        log_metric=logged.__setitem__,
    )
    assert [value is None for value in rewards] == [False, True, True, True]
    assert dict(reward.unscored) == {"names no option": 2, "empty prompt": 1}
    assert logged == {f"{reward.__name__}/unscored": 0.75}
    punished, options = reward_of(place, model, no_option=-1.0), [question.options] * 2
    assert punished([question.text] * 2, ["nonsense", ""], options=options) == [-1.0, -1.0]
    assert punished([question.text], [""]) == [None]  # without options a completion cannot fail to name one
    assert dict(punished.unscored) == {"empty completion": 1}


def test_a_context_is_read_once_and_texts_are_embedded_once(
    place: Path, model: PluralPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    encode = model.predictor.encode_context

    def counted(*given: Any) -> Any:
        encoded.append(1)
        return encode(*given)

    monkeypatch.setattr(model.predictor, "encode_context", counted)
    reward, question = reward_of(place, model, NAMES[:2]), SURVEY[NAMES[0]][25]
    for _ in range(3):
        reward([question.text], ["A"], options=[question.options], group=[NAMES[1]])
    assert len(encoded) == 2


def test_many_questions_are_predicted_as_each_by_itself(place: Path, model: PluralPredictor) -> None:
    reward = reward_of(place, model)
    rng = np.random.default_rng(0)
    rng_points = rng.normal(size=(5000, 32)).astype(np.float32)
    predictor = reward._predictors[NAMES[0]]
    questions = [
        Question(str(n), ("a", "b", "c")[:size], (0.0,) * size) for n, size in enumerate([2] * 1000 + [3] * 1000)
    ]
    together = list(predictor.predict_embedded(rng_points, questions))
    assert len(together) == 2000
    for number, start, size in ((0, 0, 2), (999, 1998, 2), (1000, 2000, 3), (1999, 4997, 3)):
        (alone,) = predictor.predict_embedded(rng_points[start : start + size], [questions[number]])
        assert together[number].shares == pytest.approx(alone.shares, abs=1e-5)


@pytest.mark.parametrize(
    ("choices", "error", "message"),
    [
        ({"group": "Atlantis"}, InvalidArgument, "no context of group 'Atlantis'"),
        ({"form": "love"}, InvalidArgument, "probability, wasserstein"),
        ({"contexts": {}}, InvalidArgument, "a few answered questions"),
        ({"contexts": {"g": SURVEY[NAMES[0]][:4]}}, TooFewQuestions, "needs 5"),
        ({"contexts": {"g": "/nowhere.jsonl"}}, InvalidData, "no such file"),
        ({"embedding_model_path": "/nowhere"}, ModelUnavailable, "local folder"),
    ],
)
def test_what_is_wrong_is_said_before_a_training_begins(
    place: Path, model: PluralPredictor, choices: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments = {
        "contexts": {NAMES[0]: SURVEY[NAMES[0]][:20]},
        "embedding_model_path": place / "tiny",
        "cache": place / "cache",
    }
    with pytest.raises(error, match=message):
        GroupReward(model, **{**arguments, **choices})


def test_an_example_of_an_unknown_group_or_no_group_is_refused(place: Path, model: PluralPredictor) -> None:
    reward = reward_of(place, model, NAMES[:2])
    with pytest.raises(InvalidArgument, match=f"Atlantis.*{NAMES[0]}"):
        reward(["p"], ["c"], group=["Atlantis"])
    with pytest.raises(InvalidArgument, match="no column 'group'"):
        reward(["p"], ["c"])


def test_another_embedding_model_than_the_run_had_is_refused(place: Path, tmp_path: Path) -> None:
    probes = [{"text": "t", "vector": [1.0] * 16}]
    spec = process_spec(embedding={"probes": probes})
    with pytest.raises(EmbeddingMismatch):
        reward_of(place, PluralPredictor.from_pretrained(export(tmp_path / "m", spec)))


def test_contexts_may_be_files(place: Path, model: PluralPredictor, tmp_path: Path) -> None:
    write_group(tmp_path / "g.jsonl", SURVEY[NAMES[0]][:20])
    question = SURVEY[NAMES[0]][25]
    from_file = GroupReward(
        model, {"g": tmp_path / "g.jsonl"}, embedding_model_path=place / "tiny", cache=place / "cache", device="cpu"
    )
    given: dict[str, Any] = {"prompts": [question.text], "completions": ["A"], "options": [question.options]}
    assert from_file(**given) == pytest.approx(reward_of(place, model)(**given), abs=1e-6)


def test_the_score_command_prints_what_the_embedding_model_cannot_see(
    place: Path, model: PluralPredictor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reward = reward_of(place, model)
    reward.predict(
        [(NAMES[0], Question("Mystery?", ("ja", "nein"), (0.5, 0.5)))]
    )  # words that the tiny model does not know
    write_group(tmp_path / "group.jsonl", SURVEY[NAMES[0]][:20])
    write_group(tmp_path / "asked.jsonl", [Question("Mystery?", ("ja", "nein"), (0.5, 0.5))])
    files = (str(place / "model"), tmp_path / "asked.jsonl", tmp_path / "out.jsonl", tmp_path / "group.jsonl")
    for command in (score, pairs):
        command(*files, embedding_model_path=place / "tiny", cache=place / "cache", device="cpu")
        shown = capsys.readouterr().err
        assert all(f"note: {note}" in shown for note in reward.embedding_notes)
        assert "1 of 21 questions have options with equal vectors" in shown
