"""`status --watch` against every refusal of the error tree, every status code of gRPC, and calls that end at once."""

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import pytest
from support.errors_to_raise import EVERY_BARE_CODE, EVERY_LEAF, Case

from pluralllm.common.errors.tree import NotFound, StorageFull, Unreachable
from pluralllm.operator.watching import (
    AT_MOST_EVERY_S,
    PATIENCE_S,
    RETRY_S,
    STANDSTILL_S,
    events_of,
    news_of,
    states_of,
)

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


@dataclass
class Diary:
    """A run of five events that ends with the last. A stream gives two events at most; each error ends one stream early."""

    errors: list[Exception] = field(default_factory=list)
    happened: int = 3
    now_s: float = 0.0
    repeats: bool = False
    reads: int = 0

    def get_run(self, run: str) -> dict[str, Any]:
        assert run in ("r", "-")
        self.reads += 1
        assert self.reads < 20, "the watch does not end with the run"
        self.happened = min(5, self.happened + 1)
        phase = "ended" if self.happened == 5 else "collecting"
        return {"name": "runs/r", "sequence": self.happened, "phase": phase}

    def events(self, run: str, after: int) -> Generator[dict[str, Any], None, None]:
        assert run == "r"
        first = max(0, after - 1) if self.repeats else after
        for number in range(first + 1, min(self.happened, first + 3) + 1):
            yield {"sequence": number}
            if self.errors:
                raise self.errors.pop(0)

    def sleep(self, length_s: float) -> None:
        self.now_s += length_s

    def seen(self, after: int = 0) -> list[int]:
        return [event["sequence"] for event in events_of(self, "-", after, lambda: self.now_s, self.sleep)]


@pytest.mark.parametrize("repeats", [False, True])
def test_every_event_of_a_run_comes_once_and_the_last_ends_it(repeats: bool) -> None:
    assert Diary(repeats=repeats).seen() == [1, 2, 3, 4, 5]
    assert Diary(repeats=repeats).seen(after=3) == [4, 5]
    assert Diary(repeats=repeats).seen(after=5) == []


def test_events_go_on_after_an_error_that_passes_and_end_with_one_that_does_not() -> None:
    assert Diary([Unreachable(address="x", problem="gone")] * 2).seen() == [1, 2, 3, 4, 5]
    with pytest.raises(NotFound):
        Diary([NotFound(what="run", name="r")]).seen()


def test_the_watch_ends_if_the_run_stands_still_for_a_while_and_not_at_once() -> None:
    now_s, blocked = 0.0, ["", "ann takes no part", "ann takes no part", "", *["ann takes no part"] * 9]

    class Standing:
        def get_run(self, run: str) -> dict[str, Any]:
            return {"name": "runs/r", "sequence": 1, "phase": "waiting", "blocked": blocked.pop(0)}

        def wait_for_event(self, run: str, after: int) -> None:
            nonlocal now_s
            now_s += 0.7 * STANDSTILL_S

    states = list(states_of(Standing(), "r", lambda: now_s, lambda _: None))
    assert [bool(state["blocked"]) for state in states] == [False, True, True, False, True, True, True]


def test_the_events_end_if_the_run_stands_still_for_a_while_and_go_on_if_it_does_not() -> None:
    now_s, blocked = 0.0, ["", "ann takes no part", "ann takes no part", "", *["ann takes no part"] * 9]
    reads = len(blocked)

    class Standing:
        def get_run(self, run: str) -> dict[str, Any]:
            return {"name": "runs/r", "sequence": 2, "phase": "waiting", "blocked": blocked.pop(0)}

        def events(self, run: str, after: int) -> Generator[dict[str, Any], None, None]:
            nonlocal now_s
            now_s += 0.7 * STANDSTILL_S
            yield from ({"sequence": number} for number in range(after + 1, 3))

    assert [event["sequence"] for event in events_of(Standing(), "r", 0, lambda: now_s, lambda _: None)] == [1, 2]
    assert reads - len(blocked) == 7


def test_events_between_two_standstills_end_the_first_one() -> None:
    now_s, reads = 0.0, 0
    blocked = ["ann takes no part", "", "", *["ann takes no part"] * 9]

    class Standing:
        def get_run(self, run: str) -> dict[str, Any]:
            nonlocal reads
            reads += 1
            return {"name": "runs/r", "sequence": 2, "phase": "waiting", "blocked": blocked[reads - 1]}

        def events(self, run: str, after: int) -> Generator[dict[str, Any], None, None]:
            nonlocal now_s
            now_s += 0.7 * STANDSTILL_S
            yield from ({"sequence": after + 1} for _ in range(not blocked[reads - 1]))

    assert [event["sequence"] for event in events_of(Standing(), "r", 0, lambda: now_s, lambda _: None)] == [1, 2]
    assert reads == 6, "the second standstill counts from its own begin"
