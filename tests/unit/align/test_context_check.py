"""A model whose predictions do not depend on the group is refused as a reward, or used with a warning."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import typer
from support.exported_model import export
from support.process_harness import tiny_embedding_model
from typer.testing import CliRunner

from pluralllm.align import AggregateReward, GroupReward, PluralPredictor
from pluralllm.align.commands.scoring import pairs, score
from pluralllm.align.context_check import ContextGainWarning
from pluralllm.align.model_folder import CONFIG
from pluralllm.client.data.private_data import write_group
from pluralllm.client.data.sample_survey import sample_groups
from pluralllm.common import __version__
from pluralllm.common.errors.tree import InvalidModel
from pluralllm.common.words.context_gain import IGNORES_CONTEXT, LEAST_CONTEXT_GAIN, check_context_gain
from pluralllm.common.words.questions import Question
from pluralllm.common.words.reward_weights import RewardAggregation

SURVEY: dict[str, tuple[Question, ...]] = {str(name): found for name, found in sample_groups(2, 30, 0).items()}
NAME = next(iter(SURVEY))
JUST_BELOW = LEAST_CONTEXT_GAIN - 1e-9


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("align")
    export(folder / "follows", context_gain=LEAST_CONTEXT_GAIN)
    export(folder / "blind", context_gain=0.0004)
    export(folder / "unmeasured", context_gain=None)
    earlier = export(folder / "earlier")
    config = json.loads((earlier / CONFIG).read_text())
    (earlier / CONFIG).write_text(
        json.dumps({key: value for key, value in config.items() if key not in ("context_gain", "release")})
    )
    tiny_embedding_model(folder / "tiny")
    write_group(folder / "group.jsonl", SURVEY[NAME][:20])
    write_group(folder / "asked.jsonl", SURVEY[NAME][20:])
    return folder


def reward_of(place: Path, model: Any, **choices: Any) -> GroupReward:
    contexts = {name: questions[:20] for name, questions in SURVEY.items()}
    paths = {"embedding_model_path": place / "tiny", "cache": place / "cache", "device": "cpu"}
    return GroupReward(model, contexts, **paths, **choices)


def test_a_gain_is_refused_below_the_least_one_only() -> None:
    assert check_context_gain("m", LEAST_CONTEXT_GAIN, accept=False) == ""
    assert check_context_gain("m", LEAST_CONTEXT_GAIN, accept=True) == ""
    with pytest.raises(InvalidModel):
        check_context_gain("m", JUST_BELOW, accept=False)
    assert "m: its context gain is +0.0050, below 0.005" in check_context_gain("m", JUST_BELOW, accept=True)
    with pytest.raises(InvalidModel, match=r"gain is -0\.2000"):
        check_context_gain("m", -0.2, accept=False)


def test_an_exported_model_carries_its_context_gain_and_its_release(place: Path, tmp_path: Path) -> None:
    model = PluralPredictor.from_pretrained(place / "blind")
    assert (model.config.context_gain, model.config.release) == (0.0004, __version__)
    model.save_pretrained(tmp_path / "again")
    assert PluralPredictor.from_pretrained(tmp_path / "again").config.context_gain == 0.0004


def test_a_reward_of_a_model_that_ignores_its_context_is_refused_in_the_words_of_the_other_places(place: Path) -> None:
    with pytest.raises(InvalidModel) as refused:
        reward_of(place, place / "blind")
    text = str(refused.value)
    assert f"{place / 'blind'} cannot be used: its context gain is +0.0004, below 0.005: {IGNORES_CONTEXT}" in text
    assert "accept_no_context_gain=True, --accept-no-context-gain" in text
    with pytest.raises(InvalidModel, match="The model r@0 cannot be used"):  # a model without a folder has a name
        reward_of(place, PluralPredictor.from_pretrained(place / "blind"))


def test_such_a_model_is_used_with_a_warning_if_the_caller_accepts_it(place: Path) -> None:
    with pytest.warns(ContextGainWarning, match=IGNORES_CONTEXT):
        reward = reward_of(place, place / "blind", accept_no_context_gain=True)
    aggregate = AggregateReward(reward, RewardAggregation())
    assert None not in aggregate(["p", "p"], ["x", "y"])


@pytest.mark.parametrize("model", ["unmeasured", "earlier"])
def test_a_model_whose_context_gain_is_not_known_is_used_with_a_warning(place: Path, model: str) -> None:
    with pytest.warns(ContextGainWarning, match=f"{model} is not known") as warned:
        reward_of(place, place / model)
    assert [one.category for one in warned].count(ContextGainWarning) == 1


def test_a_model_that_follows_its_context_is_used_without_a_word(place: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", ContextGainWarning)
        assert reward_of(place, place / "follows").warning == ""


@pytest.mark.parametrize("command", [score, pairs])
def test_the_commands_refuse_or_warn_on_stderr_by_their_flag(place: Path, tmp_path: Path, command: Any) -> None:
    app = typer.Typer()
    app.command()(command)
    arguments = [str(place / "blind"), str(place / "asked.jsonl"), str(tmp_path / "out.jsonl")]
    arguments += ["--context", str(place / "group.jsonl"), "--embedding-model-path", str(place / "tiny")]
    arguments += ["--cache", str(place / "cache"), "--device", "cpu", "--json"]
    refused = CliRunner().invoke(app, arguments)
    assert isinstance(refused.exception, InvalidModel)
    assert not (tmp_path / "out.jsonl").exists()
    done = CliRunner().invoke(app, [*arguments, "--accept-no-context-gain"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["rows"] == 10
    assert f"warning: The model {place / 'blind'}: its context gain" in done.stderr
    assert IGNORES_CONTEXT in done.stderr
