"""The coordinator's state as gauges, drawn anew every few seconds, for Prometheus.

Labels are bounded: the newest runs that are open (and the newest of all), and at most MAX_GROUPS groups of each.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import structlog
from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from pluralllm.common import __version__
from pluralllm.common.errors.tree import PluralError
from pluralllm.common.predictor.metrics import fairness_index
from pluralllm.server.members.registry import Registry
from pluralllm.server.process.instruments import LOOP_LAG_SECONDS
from pluralllm.server.rounds.state import Phase
from pluralllm.server.runs.coordinator import Coordinator
from pluralllm.server.runs.live_run import LiveRun
from pluralllm.server.runs.overview import ended_evaluations

DRAW_EVERY_S = 5.0
LAG_EVERY_S = 0.25
MAX_RUNS = 20
MAX_GROUPS = 200
Values = dict[tuple[str, ...], float]  # by the labels' values
CLIENT_STATES = ("working", "assigned", "idle", "away")
GAUGES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "pluralllm_build_info": ("1, of the release that runs.", ("version",)),
    "pluralllm_runs": ("Runs, by phase.", ("phase",)),
    "pluralllm_run_round": ("Rounds opened so far.", ("run",)),
    "pluralllm_run_version": ("The newest model version.", ("run",)),
    "pluralllm_run_troubled": ("1 while the coordinator itself cannot go on; pluralllm status says why.", ("run",)),
    "pluralllm_phase_left_seconds": ("Until the deadline of the phase; only where there is one.", ("run",)),
    "pluralllm_alignment_score": ("Of the newest evaluated version, 0 .. 1.", ("run", "group")),
    "pluralllm_fairness_index": ("Jain's index over the groups' alignment scores.", ("run",)),
    "pluralllm_clients": (
        "Clients that have ever connected. Working: at a task; assigned: about to fetch one; idle: connected; away: not.",
        ("state",),
    ),
    "pluralllm_leases": ("Tasks that clients hold.", ()),
    "pluralllm_certificate_left_seconds": (
        "Left of the issuer's, the server's, and the members' soonest; below 0 it has expired.",
        ("certificate",),
    ),
}
COUNTERS: Mapping[str, str] = {
    "pluralllm_received_bytes": "Of updates, since the process started.",
    "pluralllm_sent_bytes": "Of model versions, since the process started.",
}

log = structlog.get_logger()


class Picture(Collector):
    """What a scrape reads: whole, from one moment. Before the first drawing it is empty."""

    def __init__(self, coordinator: Coordinator, registry: Registry | None, wall_s: Callable[[], float]) -> None:
        """registry: None without certificates."""
        self._coordinator, self._registry, self._wall_s = coordinator, registry, wall_s
        self._drawn: tuple[Metric, ...] = ()

    def collect(self) -> Iterable[Metric]:
        return self._drawn

    async def watch(self) -> None:
        """Draws, again and again. Runs until cancelled."""
        while True:
            try:
                self._drawn = await self.draw()
            except (PluralError, OSError, ValueError) as error:  # what fails now may work before long
                log.warning("metrics.not_drawn", problem=str(error))
            await asyncio.sleep(DRAW_EVERY_S)

    async def draw(self) -> tuple[Metric, ...]:
        """All gauges, now. Raises what the store fails with."""
        runs, now_s = self._coordinator.runs(), self._coordinator.clock.now_s()
        shown = _newest(runs)
        scores = {run.id: await self._scores(run) for run in shown}
        deadlines = {run.id: run.state.deadline_s for run in shown}
        gauges: dict[str, Values] = {
            "pluralllm_build_info": {(__version__,): 1},
            "pluralllm_runs": {(phase.value,): sum(run.state.phase is phase for run in runs) for phase in Phase},
            "pluralllm_run_round": {(run.id,): run.state.round for run in shown},
            "pluralllm_run_version": {(run.id,): run.state.version for run in shown},
            "pluralllm_run_troubled": {(run.id,): bool(run.trouble) for run in shown},
            "pluralllm_phase_left_seconds": {
                (run,): end_s - now_s for run, end_s in deadlines.items() if end_s is not None
            },
            "pluralllm_alignment_score": {
                (run, group): s for run, found in scores.items() for group, s in found.items()
            },
            "pluralllm_fairness_index": {
                (run,): fairness_index(tuple(found.values())) for run, found in scores.items() if found
            },
            "pluralllm_clients": await self._clients(now_s),
            "pluralllm_leases": {(): sum(len(self._coordinator.leases.held_in(run.id)) for run in runs)},
            "pluralllm_certificate_left_seconds": self._certificates(),
        }
        counters = {
            "pluralllm_received_bytes": sum(run.received_bytes for run in runs),
            "pluralllm_sent_bytes": sum(run.sent_bytes for run in runs),
        }
        return (
            *(_gauge(name, *GAUGES[name], values) for name, values in gauges.items()),
            *(CounterMetricFamily(name, COUNTERS[name], value=value) for name, value in counters.items()),
        )

    async def _scores(self, run: LiveRun) -> dict[str, float]:
        """Of the newest version whose evaluation has ended, by group."""
        found = ended_evaluations(run, await self._coordinator.store.latest_evaluations(run.id, 2))
        newest = max((row.score.version for row in found), default=None)
        scores = sorted((row.score.group, row.score.alignment_score) for row in found if row.score.version == newest)
        return dict(scores[:MAX_GROUPS])

    async def _clients(self, now_s: float) -> Values:
        live = {session.client for session in self._coordinator.sessions.live(now_s)}
        count: Counter[str] = Counter()
        for member in await self._coordinator.store.clients():
            lease = self._coordinator.leases.of(member.client)
            if lease is not None:
                count["working" if lease.fetched else "assigned"] += 1
            else:
                count["idle" if member.client in live else "away"] += 1
        return {(state,): count[state] for state in CLIENT_STATES}

    def _certificates(self) -> Values:
        if self._registry is None:
            return {}
        authority, now_s = self._registry.authority, self._wall_s()
        left: Values = {
            ("issuer",): authority.issuer_expires_s - now_s,
            ("server",): authority.server_certificate().not_valid_after_utc.timestamp() - now_s,
        }
        members = [self._registry.newest_certificate(m.name) for m in self._registry.members() if m.revoked_s is None]
        if ends := [issued.not_after_s for issued in members if issued is not None]:
            left[("member",)] = min(ends) - now_s
        return left


async def measure_lag() -> None:
    """Asks to be woken, and sees how late it is. Runs until cancelled."""
    while True:
        asked_s = time.monotonic()
        await asyncio.sleep(LAG_EVERY_S)
        LOOP_LAG_SECONDS.observe(max(0.0, time.monotonic() - asked_s - LAG_EVERY_S))


def _newest(runs: Sequence[LiveRun]) -> list[LiveRun]:
    """Runs are oldest first."""
    shown = [run for run in runs if not run.is_over][-MAX_RUNS:]
    return shown or list(runs[-1:])


def _gauge(name: str, documentation: str, labels: tuple[str, ...], values: Values) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, documentation, labels=labels)
    for of, value in values.items():
        family.add_metric(of, value)
    return family
