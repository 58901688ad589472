"""The loop that waits for a batch's rewards, against every refusal of the error tree and every status code of gRPC."""

import asyncio
import warnings
from typing import Any

import pytest
from support.errors_to_raise import EVERY_BARE_CODE, EVERY_LEAF, Case
from support.small_survey import small_spec

from pluralllm.align import federated_reward
from pluralllm.align.context_check import ContextGainWarning
from pluralllm.align.federated_reward import FederatedReward
from pluralllm.common.errors.tree import InvalidModel
from pluralllm.common.words.ids import Digest, ModelVersion, RunId
from pluralllm.common.words.names import ModelName
from pluralllm.common.words.reward_weights import RewardOptions
from pluralllm.operator.remote import Remote

ENDS_THE_WAIT = {
    *("CertificateExpired", "CertificateForeign", "CertificateInvalid", "CertificateNotYetValid"),
    *("CertificateRevoked", "CertificateWrongUse"),
    *("IdentityMismatch", "InvalidArgument", "NotFound", "OverLimit", "RoleForbids", "RunNotShared", "Unidentified"),
}
ANSWER = {"outcome": "closed"}
MODEL = ModelName(RunId("first"), ModelVersion(7))


class ScoredRemote(Remote):
    """Has a reward run whose model some groups have scored."""

    def __init__(self, *gains: float | None) -> None:
        self.gains, self.batches, self.reads = gains, 0, 0

    def model_record(self, model: ModelName) -> tuple[dict[str, Any], int, bytes]:
        """Returns the spec of a reward run of version 7 of the run first."""
        assert str(model) == "runs/tuning/models/0"
        spec = small_spec().for_rewards(MODEL, Digest("a1" * 32), RewardOptions(), "here")
        return {}, 0, spec.canonical_json()

    def evaluations(self, run: str) -> list[dict[str, Any]]:
        self.reads += 1
        assert run == "first"
        older = {"version": 6, "context_gain": 0.9}
        return [older, *({"version": 7, "context_gain": gain} for gain in self.gains)]

    def ask_rewards(self, run: str, rollouts_json: bytes) -> str:
        self.batches += 1
        return "runs/tuning/rounds/1"

    def rewards(self, name: str) -> dict[str, Any]:
        return {"outcome": "closed", "groups": [], "rewards": [0.25, 0.75]}


def rewarded(remote: Remote, **choices: Any) -> list[float | None]:
    """Returns the rewards of two batches."""
    reward = FederatedReward(remote, "tuning", **choices)
    batches = [asyncio.run(reward(["p"], ["B"], options=[["x", "y"]])) for _ in range(2)]
    return [value for batch in batches for value in batch]


def test_a_run_whose_model_ignores_its_context_gets_no_batch() -> None:
    remote = ScoredRemote(0.01, -0.01, None)
    with pytest.raises(InvalidModel, match=r"first@7 .* \+0\.0000.*these predictions do not depend on the group"):
        rewarded(remote)
    assert remote.batches == 0


def test_such_a_run_is_used_with_a_warning_if_the_trainer_accepts_it() -> None:
    remote = ScoredRemote(0.0)
    with pytest.warns(ContextGainWarning, match="first@7: its context gain is") as warned:
        assert rewarded(remote, accept_no_context_gain=True) == [0.75, 0.75]
    assert (len(warned), remote.reads) == (1, 1)


def test_a_model_whose_context_gain_nobody_reports_is_used_with_a_warning() -> None:
    with pytest.warns(ContextGainWarning, match="first@7 is not known"):
        assert rewarded(ScoredRemote(None)) == [0.75, 0.75]


def test_a_model_that_follows_its_context_is_used_without_a_word() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rewarded(ScoredRemote(0.01, 0.02)) == [0.75, 0.75]


class ScriptedRemote(Remote):
    """Fails once, at the batch or at the rewards."""

    def __init__(self, call: str, error: Exception) -> None:
        self._errors = {call: [error]}

    def ask_rewards(self, run: str, rollouts_json: bytes) -> str:
        del run, rollouts_json
        self._play("ask_rewards")
        return "runs/r/rounds/1"

    def rewards(self, name: str) -> dict[str, Any]:
        del name
        self._play("rewards")
        return ANSWER

    def get_run(self, run: str) -> dict[str, Any]:
        """Returns a run that takes batches."""
        return {"name": f"runs/{run}", "phase": "waiting", "paused": False}

    def _play(self, call: str) -> None:
        if errors := self._errors.get(call):
            raise errors.pop()


@pytest.mark.parametrize("call", ["ask_rewards", "rewards"])
@pytest.mark.parametrize("case", [*EVERY_LEAF, *EVERY_BARE_CODE], ids=str)
async def test_an_error_ends_the_wait_for_rewards_only_if_no_later_try_can_mend_it(
    case: Case, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(federated_reward, "BUSY_RETRY_S", 0.0)
    reward = FederatedReward(ScriptedRemote(call, case.error), "r")
    if case.name in ENDS_THE_WAIT:
        with pytest.raises(type(case.error)):
            await reward._answer(b"[]")
    else:
        assert await reward._answer(b"[]") is ANSWER
