"""Follows one run until it ends, for `status --watch` and for programs. Only an error that no later try can mend ends that."""

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, Protocol

from pluralllm.common.errors.tree import PluralError
from pluralllm.common.words.names import RunName
from pluralllm.operator.endings import ENDS

PATIENCE_S = 120.0  # without an answer, for example while the coordinator restarts
RETRY_S = 1.0
STANDSTILL_S = 20.0  # the time in which an owner may restart a client, before nobody waits for it any more
AT_MOST_EVERY_S = 0.3  # a busy run, or a proxy that ends each call at once, would otherwise cause calls without a pause

Values = dict[str, Any]


class Watched(Protocol):
    """The two calls that following a run needs; operator.remote.Remote has them."""

    def get_run(self, run: str) -> Values:
        """Returns the run."""

    def wait_for_event(self, run: str, after: int) -> None:
        """Waits some seconds for an event with a higher number than `after`."""


class Listened(Protocol):
    """The two calls that following a run's events needs; operator.remote.Remote has them."""

    def get_run(self, run: str) -> Values:
        """Returns the run."""

    def events(self, run: str, after: int) -> Generator[Values, None, None]:
        """Yields the events with a higher number than `after`, for some seconds."""


class _Standstill:
    """Since when a run has stood still, because it cannot go on before owners of clients act."""

    def __init__(self) -> None:
        self._since_s: float | None = None

    def lasts(self, facts: Values, now_s: float) -> bool:
        """Returns whether the run has stood still for longer than STANDSTILL_S seconds. facts: of the run, as they are now."""
        if not facts.get("blocked"):
            self._since_s = None
        elif self._since_s is None:
            self._since_s = now_s
        return self._since_s is not None and now_s - self._since_s > STANDSTILL_S


def states_of(
    connection: Watched,
    run: str,
    monotonic_s: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    is_unwatched: Callable[[], bool] = lambda: False,
) -> Iterator[Values]:
    """Yields the run again and again until it has ended, or until `is_unwatched` says that nobody reads it any more.

    Also ends when the run has stood still for STANDSTILL_S seconds, because it cannot go on before owners of clients act. An
    earlier release's coordinator does not say so.
    Raises an error of the first call. Later, raises an error in ENDS at once, and any other one after PATIENCE_S seconds.
    """
    facts = connection.get_run(run)
    name = RunName.parse(facts["name"]).run
    answered_s, standstill = monotonic_s(), _Standstill()
    yield facts
    while facts["phase"] != "ended" and not is_unwatched():
        began_s = monotonic_s()
        if standstill.lasts(facts, began_s):
            return
        try:
            connection.wait_for_event(name, facts["sequence"])
            facts, answered_s = connection.get_run(name), monotonic_s()
        except PluralError as error:
            if isinstance(error, ENDS) or monotonic_s() - answered_s > PATIENCE_S:
                raise
            sleep(RETRY_S)
            continue
        yield facts
        sleep(max(0.0, began_s + AT_MOST_EVERY_S - monotonic_s()))


def news_of(states: Iterable[Values]) -> Iterator[Values]:
    """Yields the states of a run in which something has happened since the state before; ages and progress are no news."""
    sequence = None
    for state in states:
        if state["sequence"] != sequence:
            sequence = state["sequence"]
            yield state


def events_of(
    connection: Listened,
    run: str,
    after: int = 0,
    monotonic_s: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Values]:
    """Yields each event of a run once, in order, until the run has ended; waits for those that are still to come.

    Also ends when the run has stood still for STANDSTILL_S seconds, as states_of does.
    after: the sequence number of the last event to leave out; 0 begins with the run's first event.
    Raises an error of the first call. Later, raises an error in ENDS at once, and any other one after PATIENCE_S seconds.
    """
    facts = connection.get_run(run)
    name = RunName.parse(facts["name"]).run
    answered_s, standstill = monotonic_s(), _Standstill()
    while True:
        began_s, before = monotonic_s(), after
        try:
            for event in connection.events(name, after):
                if event["sequence"] > after:  # a coordinator that repeats itself must not repeat an event here
                    after = event["sequence"]
                    yield event
                    answered_s = monotonic_s()
            if facts["phase"] == "ended" and (after == before or after >= facts["sequence"]):
                return
            if standstill.lasts(facts, monotonic_s()) and after == before:
                return
            facts, answered_s = connection.get_run(name), monotonic_s()
        except PluralError as error:
            if isinstance(error, ENDS) or monotonic_s() - answered_s > PATIENCE_S:
                raise
            sleep(RETRY_S)
            continue
        sleep(max(0.0, began_s + AT_MOST_EVERY_S - monotonic_s()))
