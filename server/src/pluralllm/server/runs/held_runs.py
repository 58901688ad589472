"""Holds the runs whose aggregator is another package's and cannot be used here: not installed, in another version, or broken.

A held run stays as it is. No time passes for it, and nothing of it is lost; what its clients still send is kept. Other runs go
on. The run goes on by itself once the package can be used.
"""

import asyncio

from pluralllm.common.process.clock import Clock
from pluralllm.common.words.ids import RunId
from pluralllm.common.words.spec import RunSpec
from pluralllm.server.aggregation.aggregator import aggregator

RETRY_S = 5.0


class HeldRuns:
    """The runs that are held, with the times at which they are tried again. Only the coordinator changes them."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._next_try_s: dict[RunId, float] = {}

    def __contains__(self, run: RunId) -> bool:
        return run in self._next_try_s

    def take(self, run: RunId, spec: RunSpec) -> bool:
        """Holds a run if its aggregator is another package's. Returns whether it is."""
        if spec.aggregation.plugin is not None:
            self._next_try_s[run] = self._clock.now_s()
        return run in self._next_try_s

    async def let_go(self, run: RunId, spec: RunSpec) -> bool:
        """Returns whether a held run can go on, and holds it no longer then; False if it is not yet time for another try.

        Raises PluginMissing or PluginBroken if its plug-in cannot be used. The run stays held.
        """
        now_s = self._clock.now_s()
        if self._next_try_s[run] > now_s:
            return False
        self._next_try_s[run] = now_s + RETRY_S
        await check_plugin(spec)
        self._next_try_s.pop(run)
        return True


async def check_plugin(spec: RunSpec) -> None:
    """Checks that this process can use the aggregator that a spec names.

    Raises PluginMissing or PluginBroken for another package's that it cannot use.
    """
    await asyncio.to_thread(aggregator, spec.aggregation)  # an import may take long
