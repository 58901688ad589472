"""`pluralllm run rewards` and Python derive the same spec; `pluralllm run create` says what sums show."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support.small_survey import small_spec
from typer.testing import CliRunner

from pluralllm.cli import __main__ as command_line
from pluralllm.cli import run_commands
from pluralllm.cli.new_spec import new_spec
from pluralllm.common.errors.tree import InvalidModel
from pluralllm.common.words.ids import Digest, ModelVersion, RunId
from pluralllm.common.words.names import ModelName
from pluralllm.common.words.reward_weights import RewardOptions
from pluralllm.common.words.spec import RunSpec, parse_spec

MODEL, DIGEST = ModelName(RunId("first"), ModelVersion(7)), Digest("a1" * 32)
SOURCE = small_spec({"title": "of the model", "seed": 3, "round": {"gather_s": 1}, "groups": {"train": ["a", "b"]}})


@dataclass
class FakeRemote:
    """A coordinator with one model."""

    asked: list[str] = field(default_factory=list)
    created: dict[str, bytes] = field(default_factory=dict)
    gains: tuple[float | None, ...] = (0.004, 0.006)  # of the model's groups

    def evaluations(self, run: str) -> list[dict[str, Any]]:
        other = {"version": 6, "context_gain": 0.5 if self.gains == (0.0,) else -0.5}
        return [other, *({"version": MODEL.version, "context_gain": gain} for gain in self.gains)]

    def model_record(self, model: ModelName) -> tuple[dict[str, Any], int, bytes]:
        self.asked.append(str(model))
        return {"name": str(MODEL), "digest": DIGEST}, 1, SOURCE.canonical_json()

    def create_run(self, run: str, spec_json: bytes) -> dict[str, Any]:
        self.created[run] = spec_json
        return {"name": f"the run {run}", "evaluations": [], "previous_evaluations": []}


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> FakeRemote:
    fake = FakeRemote()
    monkeypatch.setattr(run_commands, "remote", lambda _: fake)
    return fake


def created_by(there: FakeRemote, *arguments: str) -> RunSpec:
    result = CliRunner().invoke(command_line.app, ["run", "rewards", "tuning", *arguments, "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["name"] == "the run tuning"
    return parse_spec(there.created["tuning"], "here")


def test_the_command_and_python_give_the_same_spec(there: FakeRemote) -> None:
    options = ["--rule", "adaptive", "--temperature", "0.2", "--alpha", "-3", "--batches", "5", "--min-clients", "3"]
    options += ["--target-clients", "4", "--deadline-s", "9", "--grace-s", "1"]
    by_command = created_by(there, "first@7", *options)
    in_python = SOURCE.for_rewards(
        MODEL,
        DIGEST,
        RewardOptions(
            rule="adaptive",
            temperature=0.2,
            alpha=-3,
            batches=5,
            min_clients=3,
            target_clients=4,
            deadline_s=9,
            grace_s=1,
        ),
        "here",
    )
    assert by_command == in_python
    assert there.created["tuning"] == in_python.canonical_json()


def test_the_command_and_python_have_the_same_defaults(there: FakeRemote) -> None:
    assert created_by(there, "first") == SOURCE.for_rewards(MODEL, DIGEST, RewardOptions(), "here")
    assert there.asked == ["runs/first/models/-"]


@pytest.mark.parametrize("gains", [(0.0,), (0.0049, 0.005), (None, -0.1)])
def test_a_model_whose_predictions_do_not_depend_on_the_group_is_refused_before_a_run_is_created(
    there: FakeRemote, gains: tuple[float | None, ...]
) -> None:
    there.gains = gains
    refused = CliRunner().invoke(command_line.app, ["run", "rewards", "tuning", "first"])
    assert isinstance(refused.exception, InvalidModel)
    assert "The model first@7 cannot be used: its context gain is" in str(refused.exception)
    assert there.created == {}
    accepted = CliRunner().invoke(
        command_line.app, ["run", "rewards", "tuning", "first", "--accept-no-context-gain", "--json"]
    )
    assert accepted.exit_code == 0, accepted.output
    assert "warning: The model first@7: its context gain" in accepted.stderr
    assert list(there.created) == ["tuning"]


@pytest.mark.parametrize(("gains", "warnings"), [((0.005, None), 0), ((None,), 1), ((), 1)])
def test_a_model_whose_context_gain_is_not_known_is_used_with_a_warning(
    there: FakeRemote, gains: tuple[float | None, ...], warnings: int
) -> None:
    there.gains = gains
    result = CliRunner().invoke(command_line.app, ["run", "rewards", "tuning", "first", "--json"])
    assert result.exit_code == 0, result.output
    assert result.stderr.count("warning: The context gain of the model first@7 is not known") == warnings
    assert list(there.created) == ["tuning"]


@pytest.mark.parametrize(("preset", "notes"), [("sums", 1), ("fourier", 0)])
def test_a_new_run_of_sums_says_what_its_sums_show(there: FakeRemote, tmp_path: Path, preset: str, notes: int) -> None:
    (tmp_path / "run.toml").write_text(new_spec(preset=preset))
    result = CliRunner().invoke(command_line.app, ["run", "create", "sums", str(tmp_path / "run.toml"), "--json"])
    assert result.exit_code == 0, result.output
    text = "a coordinator can compute this group's answers from its sums; a client that trains takes part only if"
    assert result.stderr.count(text) == notes
    assert list(there.created) == ["sums"]


def test_a_new_run_that_demands_noise_says_that_nobody_checks_it(there: FakeRemote, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(new_spec(respondents_epsilon=2.5))
    result = CliRunner().invoke(command_line.app, ["run", "create", "quiet", str(tmp_path / "run.toml"), "--json"])
    assert result.exit_code == 0, result.output
    assert "note: clients need noised answers, epsilon 2.5 at most, as they state it; nobody checks it" in result.stderr
    demand = parse_spec(there.created["quiet"], "here").privacy
    assert demand is not None
    assert demand.respondents_epsilon == 2.5


def test_a_rule_that_is_none_is_refused_under_the_name_of_the_run(there: FakeRemote) -> None:
    result = CliRunner().invoke(command_line.app, ["run", "rewards", "tuning", "first", "--rule", "median"])
    assert "The run spec of run tuning is not valid:\n  rewards.aggregation.rule: " in str(result.exception)
    assert there.created == {}
