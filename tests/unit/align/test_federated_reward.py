"""The loop that waits for a batch's rewards, against every refusal of the error tree and every status code of gRPC."""

from typing import Any

import pytest
from support.errors_to_raise import EVERY_BARE_CODE, EVERY_LEAF, Case

from pluralllm.align import federated_reward
from pluralllm.align.federated_reward import FederatedReward
from pluralllm.operator.remote import Remote

ENDS_THE_WAIT = {
    *("CertificateExpired", "CertificateForeign", "CertificateInvalid", "CertificateNotYetValid"),
    *("CertificateRevoked", "CertificateWrongUse"),
    *("IdentityMismatch", "InvalidArgument", "NotFound", "OverLimit", "RoleForbids", "RunNotShared", "Unidentified"),
}
ANSWER = {"outcome": "closed"}


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
