"""`status --watch` against every refusal of the error tree, every status code of gRPC, and calls that end at once."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from support.errors_to_raise import EVERY_BARE_CODE, EVERY_LEAF, Case

from pluralllm.cli.watching import AT_MOST_EVERY_S, PATIENCE_S, RETRY_S, news_of, states_of
from pluralllm.common.errors.tree import StorageFull

ENDS_THE_WATCH = {
    *("CertificateExpired", "CertificateForeign", "CertificateInvalid", "CertificateNotYetValid"),
    *("CertificateRevoked", "CertificateWrongUse"),
    *("IdentityMismatch", "InvalidArgument", "NotFound", "OverLimit", "RoleForbids", "RunNotShared", "Unidentified"),
}


@dataclass
class ScriptedRun:
    """A run that ends after its third state. Each error of the script is raised once, at the wait or at the read."""

    errors_of_waits: list[Exception] = field(default_factory=list)
    errors_of_reads: list[Exception] = field(default_factory=list)
    now_s: float = 0.0
    reads: int = 0

    def get_run(self, run: str) -> dict[str, Any]:
        assert run in ("r", "-")
        if self.reads and self.errors_of_reads:
            raise self.errors_of_reads.pop(0)
        self.reads += 1
        return {"name": "runs/r", "sequence": self.reads, "phase": "ended" if self.reads == 3 else "collecting"}

    def wait_for_event(self, run: str, after: int) -> None:
        assert (run, after) == ("r", self.reads)
        if self.errors_of_waits:
            raise self.errors_of_waits.pop(0)

    def sleep(self, length_s: float) -> None:
        self.now_s += length_s

    def states(self) -> list[dict[str, Any]]:
        return list(states_of(self, "-", lambda: self.now_s, self.sleep))


@pytest.mark.parametrize("call", ["errors_of_waits", "errors_of_reads"])
@pytest.mark.parametrize("case", [*EVERY_LEAF, *EVERY_BARE_CODE], ids=str)
def test_an_error_ends_the_watch_only_if_no_later_try_can_mend_it(case: Case, call: str) -> None:
    run = ScriptedRun()
    getattr(run, call).append(case.error)
    if case.name in ENDS_THE_WATCH:
        with pytest.raises(type(case.error)):
            run.states()
    else:
        assert len(run.states()) == 3


@pytest.mark.parametrize(("tries", "ends"), [(PATIENCE_S / RETRY_S + 1, False), (PATIENCE_S / RETRY_S + 2, True)])
def test_the_watch_has_patience_for_two_minutes(tries: float, ends: bool) -> None:
    run = ScriptedRun(errors_of_waits=[StorageFull(what="x")] * int(tries))
    if ends:
        with pytest.raises(StorageFull):
            run.states()
    else:
        assert len(run.states()) == 3


def test_a_call_that_ends_at_once_causes_no_calls_without_a_pause() -> None:
    run = ScriptedRun()
    assert len(run.states()) == 3
    assert run.now_s == pytest.approx(2 * AT_MOST_EVERY_S)


def test_the_watch_ends_when_nobody_reads_it_any_more() -> None:
    run = ScriptedRun()
    states = states_of(run, "-", lambda: run.now_s, run.sleep, is_unwatched=lambda: run.reads == 2)
    assert [state["phase"] for state in states] == ["collecting"] * 2


def test_news_are_the_states_after_an_event() -> None:
    states = [{"sequence": number, "age": age} for age, number in enumerate((0, 0, 4, 4, 5))]
    assert [state["age"] for state in news_of(states)] == [0, 2, 4]
