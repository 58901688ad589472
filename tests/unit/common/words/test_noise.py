"""Statements about noise are checked and shown as declared; a run spec may demand a bound."""

import math
from dataclasses import asdict
from typing import Any

import pytest
from pydantic import ValidationError

from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.common.wire.messages import noise_in, noise_message
from pluralllm.common.words.noise import NoiseStatement, declared_text
from pluralllm.common.words.reward_weights import RewardOptions
from pluralllm.common.words.spec import RunSpec, parse_spec
from pluralllm.v1 import federation_pb2 as pb

EMBEDDING = {"model": "m", "dimension": 8}
DEMAND = {"respondents_epsilon": 4.0, "delta": 1e-6, "unit": "respondent"}
NOISED = NoiseStatement(noised=True, epsilon=4.0, delta=1e-6, unit="respondent")
TRUE_ANSWERS = NoiseStatement(noised=False)


def spec(**changes: Any) -> RunSpec:
    return RunSpec.model_validate({"embedding": EMBEDDING, **changes})


def test_a_demand_makes_another_job_and_a_spec_without_one_says_nothing_about_it() -> None:
    demanding = spec(privacy=DEMAND)
    assert demanding.sha256() != spec().sha256()
    assert b"privacy" not in spec().canonical_json()
    assert parse_spec(demanding.canonical_json(), "again") == demanding


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("respondents_epsilon", value) for value in (0, -1.0, math.nan, math.inf, 1000.1, 1e308, None, "4")),
        *(("delta", value) for value in (0, -1e-6, math.nan, 0.11, 1)),
        *(("unit", value) for value in ("vote", "", None)),
        ("population", "town"),
    ],
)
def test_a_demand_without_meaning_is_refused(key: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=key if key != "population" else "Extra inputs"):
        RunSpec.model_validate({"embedding": EMBEDDING, "privacy": DEMAND | {key: value}}, strict=key != "unit")


@pytest.mark.parametrize("key", sorted(DEMAND))
def test_a_demand_names_epsilon_delta_and_unit(key: str) -> None:
    with pytest.raises(ValidationError, match=key):
        spec(privacy={name: value for name, value in DEMAND.items() if name != key})


def test_a_run_of_rewards_demands_what_the_run_of_its_model_demands() -> None:
    from pluralllm.common.words.ids import Digest, ModelVersion, RunId  # noqa: PLC0415
    from pluralllm.common.words.names import ModelName  # noqa: PLC0415

    source = ModelName(RunId("r"), ModelVersion(1))
    rewards = spec(privacy=DEMAND).for_rewards(source, Digest("a" * 64), RewardOptions(), "f")
    assert rewards.privacy == spec(privacy=DEMAND).privacy


@pytest.mark.parametrize("statement", [NOISED, TRUE_ANSWERS, None, NoiseStatement(True, 0.0, 0.5, "a" * 40)])
def test_a_statement_arrives_as_it_was_sent(statement: NoiseStatement | None) -> None:
    assert noise_in(pb.HelloRequest(noise=noise_message(statement))) == statement


@pytest.mark.parametrize(
    "changes",
    [
        *({"epsilon": value} for value in (-0.001, math.nan, math.inf)),
        *({"delta": value} for value in (0.0, 1.0, -1.0, math.nan, math.inf)),
        *({"unit": value} for value in ("", "a" * 41, "Respondent", "re\x1b[2J", "a b", "\u202e")),
        {"noised": False},
        {"noised": False, "delta": 0.0, "unit": ""},
        {"noised": False, "epsilon": 0.0, "unit": ""},
        {"noised": False, "epsilon": 0.0, "delta": 0.0},
    ],
)
def test_a_statement_without_meaning_is_refused(changes: dict[str, Any]) -> None:
    statement = NoiseStatement(**(asdict(NOISED) | changes))
    with pytest.raises(InvalidArgument, match="noise"):
        noise_in(pb.HelloRequest(noise=noise_message(statement)))


def test_the_weaker_of_two_statements_promises_less() -> None:
    more = NoiseStatement(noised=True, epsilon=8.0, delta=1e-9, unit="respondent")
    assert NOISED.weaker(more) == more.weaker(NOISED) == more
    assert TRUE_ANSWERS.weaker(more) == more.weaker(TRUE_ANSWERS) == TRUE_ANSWERS
    riskier = NoiseStatement(noised=True, epsilon=4.0, delta=1e-3, unit="respondent")
    assert NOISED.weaker(riskier) == riskier


def test_a_statement_is_shown_with_its_unit_and_silence_is_no_noise_and_no_lack_of_it() -> None:
    assert declared_text(asdict(NOISED)) == "epsilon 4, delta 1e-06, unit respondent"
    assert declared_text(asdict(TRUE_ANSWERS)) == "not noised"
    assert declared_text(None) == "not stated"
