"""The daemon's talk with its coordinator, against every refusal of the error tree and every status code of gRPC."""

import asyncio
from dataclasses import dataclass, field
from typing import Any, cast

import grpc
import pytest
from structlog.testing import capture_logs
from support.errors_to_raise import EVERY_BARE_CODE, EVERY_LEAF, Case

from pluralllm.client.daemon import pace, polling
from pluralllm.client.daemon.pace import Pace
from pluralllm.client.daemon.polling import Polling
from pluralllm.client.daemon.reactions import FINAL
from pluralllm.client.daemon.renewal import Renewal
from pluralllm.client.link.tasks import Answer, Wait
from pluralllm.common.errors.membership import CertificateExpired, CertificateRevoked, CertificateUnknown, TooManyCalls
from pluralllm.common.errors.tree import InvalidConfig, PluralError, StaleSession, StorageFull, Unreachable
from pluralllm.common.process.pulse import Pulse

ENDS_THE_DAEMON = {
    "CertificateForeign",
    "CertificateInvalid",
    "CertificateRevoked",
    "CertificateWrongUse",
    "SessionReplaced",
}
STEPS = ("greet", "ask", "take")


@dataclass
class ScriptedTalk:
    """A talk in which one step fails for each error of its script, in turn. The talk ends when an answer is taken."""

    step: str
    errors: list[Exception]
    calls: list[str] = field(default_factory=list)
    coordinator: str = "127.0.0.1:1"

    async def must_greet(self) -> bool:
        return False

    async def greet(self) -> None:
        self._play("greet")

    async def ask(self) -> Answer:
        self._play("ask")
        return Wait(0.0, "")

    async def take(self, answer: Answer) -> None:
        del answer
        self._play("take")

    def _play(self, step: str) -> None:
        self.calls.append(step)
        if step == self.step and self.errors:
            raise self.errors.pop(0)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((pace, "FIRST_BACKOFF_S"), (pace, "LAST_BACKOFF_S"), (polling, "APPROVAL_WAIT_S")):
        monkeypatch.setattr(module, name, 0.0)


async def talk(step: str, *errors: Exception) -> ScriptedTalk:
    scripted = ScriptedTalk(step, list(errors))
    transport: Any = None  # without an identity, a renewal makes no call
    await Polling(scripted, Renewal(None, transport), Pace(), Pulse()).run()
    return scripted


def test_the_final_errors_are_these() -> None:
    assert {leaf.__name__ for leaf in FINAL} == ENDS_THE_DAEMON


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("case", [*EVERY_LEAF, *EVERY_BARE_CODE], ids=str)
async def test_an_error_ends_the_talk_only_if_it_is_final(case: Case, step: str) -> None:
    if case.name in ENDS_THE_DAEMON:
        with pytest.raises(type(case.error)):
            await talk(step, case.error)
    else:
        assert (await talk(step, case.error)).calls[-1] == "take"


@pytest.mark.parametrize("step", STEPS)
async def test_a_disk_that_fails_does_not_end_the_talk(step: str) -> None:
    assert (await talk(step, OSError(28, "No space left on device"))).calls[-1] == "take"


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("error", [ValueError("x"), KeyError("x"), TypeError(), AssertionError(), RecursionError("x")])
async def test_an_error_that_nobody_expected_is_logged_and_does_not_end_the_talk(step: str, error: Exception) -> None:
    with capture_logs() as logs:
        assert (await talk(step, *[error] * 20)).calls[-1] == "take"
    [line] = [line for line in logs if line["event"] == "client.talk_broken"]
    assert (line["log_level"], line["exc_info"]) == ("error", error)


class HeldTalk(ScriptedTalk):
    """A talk whose first poll the coordinator holds for ever, while the partner does something that Hello must say."""

    def __init__(self, news: list[bool | Exception]) -> None:
        super().__init__("", [])
        self._news = news  # what each look finds

    async def must_greet(self) -> bool:
        self.calls.append("look")
        news = self._news.pop(0) if self._news else False
        if isinstance(news, Exception):
            raise news
        return news

    async def ask(self) -> Answer:
        answer = await super().ask()
        if self.calls.count("ask") > 1:
            return answer
        try:
            await asyncio.Event().wait()
        finally:
            self.calls.append("cancelled")
        return answer


@pytest.mark.parametrize("news", [True, ValueError("the file is half written")])
async def test_a_consent_waits_for_no_polls_end(monkeypatch: pytest.MonkeyPatch, news: bool | Exception) -> None:
    monkeypatch.setattr(polling, "LOOK_EVERY_S", 0.001)
    scripted = HeldTalk([False, False, False, news])
    transport: Any = None
    await asyncio.wait_for(Polling(scripted, Renewal(None, transport), Pace(), Pulse()).run(), 10)
    looks = ["look", "look", "look", "cancelled"]
    assert scripted.calls == ["look", "greet", "ask", *looks, "look", "greet", "ask", "take"]


class BrokenRenewal(Renewal):
    """A renewal that cannot find out what is wrong, because its own files fail it."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def true_cause(self, error: PluralError) -> PluralError:
        raise self.error from error

    async def recover(self, refusal: CertificateRevoked | CertificateUnknown) -> None:
        raise self.error from refusal


@pytest.mark.parametrize(
    "refusal",
    [
        Unreachable(address="x", problem="y"),
        CertificateRevoked(name="x", revoked="y"),
        CertificateUnknown(name="x", serial="y"),
    ],
)
@pytest.mark.parametrize("error", [PermissionError(13, "no"), InvalidConfig(file="x", problems="y"), ValueError("x")])
async def test_what_fails_after_a_refusal_does_not_end_the_talk(refusal: Exception, error: Exception) -> None:
    scripted = ScriptedTalk("ask", [refusal] * 20)
    await Polling(scripted, BrokenRenewal(error), Pace(), Pulse()).run()
    assert scripted.calls[-1] == "take"


async def test_what_is_final_after_a_refusal_ends_the_talk() -> None:
    expired = CertificateExpired(name="x", expired="y")
    with pytest.raises(CertificateExpired):
        await Polling(
            ScriptedTalk("ask", [Unreachable(address="x", problem="y")]), BrokenRenewal(expired), Pace(), Pulse()
        ).run()


async def test_many_different_errors_in_a_row_do_not_end_the_talk() -> None:
    errors = [case.error for case in (*EVERY_BARE_CODE, *EVERY_LEAF) if case.name not in ENDS_THE_DAEMON]
    assert (await talk("greet", *errors[:40])).calls.count("greet") == 41


@pytest.mark.parametrize(
    ("error", "calls"),
    [
        (Unreachable(address="x", problem="y"), ["greet", "ask", "ask", "take"]),
        (StaleSession(client="ann"), ["greet", "ask", "greet", "ask", "take"]),
        (StorageFull(what="x"), ["greet", "ask", "greet", "ask", "take"]),
        (InvalidConfig(file="consents", problems="x"), ["greet", "ask", "greet", "ask", "take"]),
    ],
)
async def test_a_refused_poll_opens_a_new_session_and_a_lost_one_does_not(error: Exception, calls: list[str]) -> None:
    assert (await talk("ask", error)).calls == calls


async def test_the_log_says_what_refuses_and_with_which_code() -> None:
    [full] = [case for case in EVERY_BARE_CODE if case.name == grpc.StatusCode.RESOURCE_EXHAUSTED.name]
    with capture_logs() as logs:
        await talk("greet", full.error, StorageFull(what="the clients"))
    reasons = [line["reason"] for line in logs if line["event"] == "client.waiting"]
    assert ["RESOURCE_EXHAUSTED" in reasons[0], "No space left" in reasons[0]] == [True, False]
    assert "No space left for the clients" in reasons[1]


async def test_the_pauses_double_up_to_a_limit_and_start_anew_after_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "FIRST_BACKOFF_S", 0.2)
    monkeypatch.setattr(pace, "LAST_BACKOFF_S", 15.0)
    monkeypatch.setattr("random.uniform", lambda *_: 1.0)
    backoff = pace.Backoff()
    assert [backoff.wait_s() for _ in range(9)] == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 15.0, 15.0]
    backoff.reset()
    assert backoff.wait_s() == 0.2


async def test_a_round_that_hangs_beats_only_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polling, "BEAT_EVERY_S", 1e-6)
    monkeypatch.setattr(polling, "ROUND_LIMIT_S", 5e-6)
    hanging, answered, pulse = ScriptedTalk("ask", []), asyncio.Event(), Pulse()
    monkeypatch.setattr(hanging, "ask", answered.wait)
    talking = asyncio.create_task(Polling(hanging, Renewal(None, cast(Any, None)), Pace(), pulse).run())
    for _ in range(200):
        await asyncio.sleep(0)
    assert pulse.beats == 5, "a loop that stands is not alive"
    answered.set()
    await asyncio.wait_for(talking, 5)


@pytest.mark.parametrize(("pause_s", "pauses"), [(0.0, [0.0]), (5.0, [5.0]), (12.0, [5.0, 5.0, 2.0])])
async def test_a_long_pause_beats_to_its_end(
    pause_s: float, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []

    async def sleep(length_s: float) -> None:
        slept.append(length_s)

    monkeypatch.setattr("asyncio.sleep", sleep)
    pulse = Pulse()
    await Polling(ScriptedTalk("ask", []), Renewal(None, cast(Any, None)), Pace(), pulse)._rest(pause_s)
    assert (slept, pulse.beats) == (pauses, len(pauses))


async def test_a_talk_that_is_cancelled_leaves_no_call_behind() -> None:
    hanging, cancelled = ScriptedTalk("ask", []), asyncio.Event()

    async def ask() -> Answer:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        raise AssertionError

    hanging.ask = ask  # type: ignore[method-assign]
    talking = asyncio.create_task(Polling(hanging, Renewal(None, cast(Any, None)), Pace(), Pulse()).run())
    while "greet" not in hanging.calls:  # noqa: ASYNC110 - the next step of the loop
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    talking.cancel()
    await asyncio.gather(talking, return_exceptions=True)
    assert cancelled.is_set()


@pytest.mark.parametrize("step", STEPS)
async def test_the_pauses_grow_whichever_step_fails(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "FIRST_BACKOFF_S", 0.2)
    monkeypatch.setattr(pace, "LAST_BACKOFF_S", 15.0)
    monkeypatch.setattr("random.uniform", lambda *_: 1.0)
    pauses: list[float] = []

    async def rest(_loop: Polling, pause_s: float) -> None:
        pauses.append(pause_s)

    monkeypatch.setattr(Polling, "_rest", rest)
    await talk(step, *[OSError(28, "No space left on device")] * 4)
    assert pauses == [0.2, 0.4, 0.8, 1.6]


async def test_a_coordinator_that_is_busy_gets_the_pause_that_it_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    async def rest(_loop: Polling, pause_s: float) -> None:
        pauses.append(pause_s)

    monkeypatch.setattr(Polling, "_rest", rest)
    await talk("ask", TooManyCalls(name="ann", rpc="Poll", retry_s=20.0))
    assert [20.0 <= pause_s <= 30.0 for pause_s in pauses] == [True]
