"""Holds the runs whose aggregator is another package's and cannot be used here: not installed, in another version, or broken.

A held run stays as it is. No time passes for it, and nothing of it is lost; what its clients still send is kept. Other runs go
on: each package loads in a thread of its own, which may hang for ever. The run goes on by itself once the package can be used.
"""

import asyncio
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Thread

from pluralllm.common.errors.plugins import PluginBroken
from pluralllm.common.process.clock import Clock
from pluralllm.common.process.plugins import AGGREGATORS, broken
from pluralllm.common.words.aggregation import Aggregation
from pluralllm.common.words.ids import RunId
from pluralllm.common.words.plugins import Plugin
from pluralllm.common.words.spec import RunSpec
from pluralllm.server.aggregation.aggregator import aggregator

LOAD_S = 10.0  # for the import of a package; less than the deadline of the call that creates a run


@dataclass(frozen=True, slots=True)
class Load:
    """One attempt to make the aggregator of a plug-in. It ends with nothing, or with PluginMissing or PluginBroken."""

    aggregation: Aggregation
    began_s: float
    end: "Future[None]" = field(default_factory=Future)

    def start(self) -> None:
        """Starts the thread of the attempt. It is no thread of asyncio's pool: one that hangs would keep the process alive."""
        self.end.set_running_or_notify_cancel()  # whoever stops to wait for it does not end it
        Thread(target=self._run, name="load of a plug-in", daemon=True).start()

    def _run(self) -> None:
        try:
            aggregator(self.aggregation)
        except BaseException as error:  # noqa: BLE001 - the waiting run or call raises it
            self.end.set_exception(error)
        else:
            self.end.set_result(None)


class HeldRuns:
    """The runs that are held, with the times at which they are tried again. Only the coordinator changes them."""

    def __init__(self, clock: Clock, retry_s: float) -> None:
        """Holds no run. retry_s: the time from one attempt that failed to the next, in seconds."""
        self._clock, self._retry_s = clock, retry_s
        self._next_try_s: dict[RunId, float] = {}
        self._attempts: dict[RunId, Load] = {}  # the attempts of held runs
        self._loads: dict[Plugin, Load] = {}  # one attempt at a time, so that a package that hangs costs one thread

    def __contains__(self, run: RunId) -> bool:
        return run in self._next_try_s

    def take(self, run: RunId, spec: RunSpec) -> bool:
        """Holds a run if its aggregator is another package's. Returns whether it is."""
        if spec.aggregation.plugin is not None:
            self._next_try_s[run] = self._clock.now_s()
        return run in self._next_try_s

    def may_go(self, run: RunId, spec: RunSpec) -> bool:
        """Returns whether a held run can go on, which its `release` makes it do. Never waits.

        Returns False while the plug-in loads, and while it is not yet time for another attempt.
        Raises PluginMissing or PluginBroken if the plug-in cannot be used, or still loads after LOAD_S. The run stays held.
        """
        plugin, now_s = spec.aggregation.plugin, self._clock.now_s()
        assert plugin is not None
        if (attempt := self._attempts.get(run)) is None:
            if now_s >= self._next_try_s[run]:
                self._attempts[run] = self._load(plugin, spec.aggregation)
            return False
        if not attempt.end.done():
            if now_s >= attempt.began_s + LOAD_S:
                raise _late(plugin)
            return False
        del self._attempts[run]
        self._next_try_s[run] = now_s + self._retry_s
        attempt.end.result()
        return True

    def release(self, run: RunId) -> None:
        """Holds a run no longer, if it is held."""
        self._next_try_s.pop(run, None)

    async def check_plugin(self, spec: RunSpec) -> None:
        """Checks that this process can use the aggregator that a spec names. Waits for it for LOAD_S at most.

        Raises PluginMissing or PluginBroken for another package's that it cannot use.
        """
        if (plugin := spec.aggregation.plugin) is None:
            return
        attempt = self._load(plugin, spec.aggregation)
        try:
            async with asyncio.timeout(LOAD_S):
                await asyncio.wrap_future(attempt.end)
        except TimeoutError:
            raise _late(plugin) from None

    def _load(self, plugin: Plugin, aggregation: Aggregation) -> Load:
        """Returns the attempt that is under way for a plug-in, or starts one."""
        self._loads = {other: attempt for other, attempt in self._loads.items() if not attempt.end.done()}
        if (attempt := self._loads.get(plugin)) is None:
            self._loads[plugin] = attempt = Load(aggregation, self._clock.now_s())
            attempt.start()
        return attempt


def _late(plugin: Plugin) -> PluginBroken:
    return broken(AGGREGATORS, plugin, f"it did not load within {LOAD_S:g} s")
