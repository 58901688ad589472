"""The coordinator's state as gauges for Prometheus. The values are updated every few seconds.

The number of runs and groups in the gauges is limited. The gauges cover the newest open runs (or the newest run if no run is
open), and at most MAX_GROUPS groups of each run.
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
from pluralllm.common.private_rounds.ring import BINS
from pluralllm.common.process.clock import Clock
from pluralllm.common.words.not_reported import NotReported
from pluralllm.common.words.score_sums import worst_bin
from pluralllm.server.members.registry import Registry
from pluralllm.server.process.instruments import LOOP_LAG_SECONDS
from pluralllm.server.rounds.state import Phase
from pluralllm.server.runs.client_rows import ClientRows
from pluralllm.server.runs.ended_evaluations import EndedEvaluations, split_by_version
from pluralllm.server.runs.leases import Leases
from pluralllm.server.runs.live_run import LiveRun
from pluralllm.server.runs.live_runs import Runs
from pluralllm.server.runs.overview import (
    reported_gains,
    reported_scores,
    state_with_slot,
    state_without_slot,
)
from pluralllm.server.runs.presence import Presence
from pluralllm.server.runs.round_sums import RoundSums
from pluralllm.server.runs.sessions import Sessions
from pluralllm.server.runs.traffic import Traffic
from pluralllm.server.runs.troubles import Troubles

READ_EVERY_S = 5.0
LAG_EVERY_S = 0.25
MAX_RUNS = 20
MAX_GROUPS = 200
Values = dict[tuple[str, ...], float]  # by the labels' values
CLIENT_STATES = ("working", "assigned", "idle", "away", "revoked")
GAUGES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "pluralllm_build_info": ("Always 1; the label names the running release.", ("version",)),
    "pluralllm_runs": ("Number of runs by phase.", ("phase",)),
    "pluralllm_run_round": ("Number of rounds opened so far.", ("run",)),
    "pluralllm_run_version": ("Number of the newest model version.", ("run",)),
    "pluralllm_run_troubled": (
        "1 while the coordinator itself cannot continue the run, else 0; pluralllm status shows the reason.",
        ("run",),
    ),
    "pluralllm_phase_left_seconds": (
        "Seconds until the deadline of the phase; absent if the phase has none.",
        ("run",),
    ),
    "pluralllm_alignment_score": (
        "Alignment score of the newest evaluated version, 0 .. 1; absent for a group that does not report its score.",
        ("run", "group"),
    ),
    "pluralllm_context_gain": (
        "Alignment score of the newest evaluated version minus the score with uniform answers as the context. Near 0, "
        "predictions do not depend on the group. Absent for a group that does not report it.",
        ("run", "group"),
    ),
    "pluralllm_groups_not_reported": (
        "Number of groups that do not report their alignment score of the newest evaluated version, by reason.",
        ("run", "reason"),
    ),
    "pluralllm_fairness_index": (
        "Jain's fairness index over the alignment scores of the groups that report them, 0 .. 1.",
        ("run",),
    ),
    "pluralllm_sum_updates": (
        "Number of updates in the newest sum of the run's private rounds.",
        ("run",),
    ),
    "pluralllm_sum_clipped_updates": (
        "Number of updates in the newest sum that were scaled down to the largest norm.",
        ("run",),
    ),
    "pluralllm_sum_loss": ("Mean training loss in the newest sum; absent if no member reports it.", ("run",)),
    "pluralllm_sum_scored": ("Number of alignment scores in the newest sum that has scores.", ("run",)),
    "pluralllm_sum_alignment_score": (
        "Mean of the alignment scores in the newest sum that has scores, 0 .. 1.",
        ("run",),
    ),
    "pluralllm_sum_worst_score": (
        "Lower bound of the lowest bin with a score in the newest sum that has scores; bins have the width 1/32.",
        ("run",),
    ),
    "pluralllm_clients": (
        "Clients that have ever connected, by state. Working on a task, assigned one, idle but connected, away, or revoked.",
        ("state",),
    ),
    "pluralllm_leases": ("Number of tasks that clients hold a lease on.", ()),
    "pluralllm_certificate_left_seconds": (
        "Seconds until a certificate expires: the issuer's, the server's, the first of the members'. Negative: expired.",
        ("certificate",),
    ),
}
COUNTERS: Mapping[str, str] = {
    "pluralllm_received_bytes": "Bytes of updates received since the process started.",
    "pluralllm_sent_bytes": "Bytes of model versions sent since the process started.",
}

log = structlog.get_logger()


class Gauges(Collector):
    """The metrics that Prometheus collects. Before the first reading of the coordinator's state there are no values.

    All values that Prometheus gets in one request come from the same reading.
    """

    def __init__(
        self,
        *,
        runs: Runs,
        evaluations: EndedEvaluations,
        sums: RoundSums,
        clients: ClientRows,
        sessions: Sessions,
        leases: Leases,
        clock: Clock,
        troubles: Troubles,
        traffic: Traffic,
        presence: Presence,
        registry: Registry | None,
        wall_s: Callable[[], float],
    ) -> None:
        """Stores the arguments. `registry`, the registry of members, is None if the server uses no certificates.

        `wall_s` returns the time of day in seconds since 1970.
        """
        self._runs, self._evaluations, self._sums, self._clients = runs, evaluations, sums, clients
        self._sessions, self._leases = sessions, leases
        self._clock, self._troubles, self._traffic = clock, troubles, traffic
        self._presence, self._registry, self._wall_s = presence, registry, wall_s
        self._values: tuple[Metric, ...] = ()

    def collect(self) -> Iterable[Metric]:
        return self._values

    async def watch(self) -> None:
        """Updates all gauges every few seconds until its task is cancelled."""
        while True:
            try:
                self._values = await self.read()
            except (PluralError, OSError, ValueError) as error:  # the next reading may succeed
                log.warning("metrics.not_drawn", problem=str(error))
            except Exception:
                log.exception("metrics.not_drawn")
            await asyncio.sleep(READ_EVERY_S)

    async def read(self) -> tuple[Metric, ...]:
        """Returns the current value of all gauges and counters. Raises StoreFailed if the database cannot be read."""
        runs, now_s = self._runs.all(), self._clock.now_s()
        shown = _newest(runs)
        evaluations = {run.id: split_by_version(await self._evaluations.of(run))[0] for run in shown}
        scores = {run: dict(sorted(reported_scores(rows))[:MAX_GROUPS]) for run, rows in evaluations.items()}
        gains = {run: dict(sorted(reported_gains(rows))[:MAX_GROUPS]) for run, rows in evaluations.items()}
        deadlines = {run.id: run.state.deadline_s for run in shown}
        gauges: dict[str, Values] = {
            "pluralllm_build_info": {(__version__,): 1},
            "pluralllm_runs": {(phase.value,): sum(run.state.phase is phase for run in runs) for phase in Phase},
            "pluralllm_run_round": {(run.id,): run.state.round for run in shown},
            "pluralllm_run_version": {(run.id,): run.state.version for run in shown},
            "pluralllm_run_troubled": {(run.id,): bool(self._troubles.of(run.id)) for run in shown},
            "pluralllm_phase_left_seconds": {
                (run,): end_s - now_s for run, end_s in deadlines.items() if end_s is not None
            },
            "pluralllm_alignment_score": {
                (run, group): score for run, by_group in scores.items() for group, score in by_group.items()
            },
            "pluralllm_context_gain": {
                (run, group): gain for run, by_group in gains.items() for group, gain in by_group.items()
            },
            "pluralllm_groups_not_reported": {
                (run, reason.value): sum(row.score.not_reported is reason for row in rows)
                for run, rows in evaluations.items()
                for reason in NotReported
            },
            "pluralllm_fairness_index": {
                (run,): fairness_index(tuple(by_group.values())) for run, by_group in scores.items() if by_group
            },
            **await self._of_sums(shown),
            "pluralllm_clients": self._count_clients(now_s),
            "pluralllm_leases": {(): sum(len(self._leases.held_in(run.id)) for run in runs)},
            "pluralllm_certificate_left_seconds": self._certificates(),
        }
        received_bytes, sent_bytes = self._traffic.totals()
        counters = {"pluralllm_received_bytes": received_bytes, "pluralllm_sent_bytes": sent_bytes}
        return (
            *(_gauge(name, *GAUGES[name], values) for name, values in gauges.items()),
            *(CounterMetricFamily(name, COUNTERS[name], value=value) for name, value in counters.items()),
        )

    async def _of_sums(self, runs: Sequence[LiveRun]) -> dict[str, Values]:
        """Returns the gauges about the sums of private rounds. A run without a sum has none."""
        sums = {run.id: await self._sums.of(run) for run in runs}
        newest = {run: one.newest.tail for run, one in sums.items() if one.newest is not None}
        scored = {run: one.scored.tail for run, one in sums.items() if one.scored is not None}
        worst = {run: worst_bin(tail.histogram) or 0 for run, tail in scored.items()}
        return {
            "pluralllm_sum_updates": {(run,): tail.updates for run, tail in newest.items()},
            "pluralllm_sum_clipped_updates": {(run,): tail.clipped for run, tail in newest.items()},
            "pluralllm_sum_loss": {(run,): tail.loss for run, tail in newest.items() if tail.loss is not None},
            "pluralllm_sum_scored": {(run,): tail.scored for run, tail in scored.items()},
            "pluralllm_sum_alignment_score": {(run,): tail.score or 0.0 for run, tail in scored.items()},
            "pluralllm_sum_worst_score": {(run,): number / BINS for run, number in worst.items()},
        }

    def _count_clients(self, now_s: float) -> Values:
        count: Counter[str] = Counter()
        for member in self._clients.all():
            lease = self._leases.of(member.client)
            session, is_revoked = self._sessions.get(member.client), member.client in self._presence.revoked
            without = state_without_slot(session, now_s, is_revoked)
            count[state_with_slot(lease) if lease is not None else without] += 1
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
    """Measures the event loop's delay: how many seconds too late the loop wakes a sleeping task.

    The function repeats the measurement until its task is cancelled.
    """
    while True:
        asked_s = time.monotonic()
        await asyncio.sleep(LAG_EVERY_S)
        LOOP_LAG_SECONDS.observe(max(0.0, time.monotonic() - asked_s - LAG_EVERY_S))


def _newest(runs: Sequence[LiveRun]) -> list[LiveRun]:
    """Returns the newest open runs, at most MAX_RUNS; or the newest run if no run is open.

    `runs` must be sorted, the oldest first.
    """
    shown = [run for run in runs if not run.is_over][-MAX_RUNS:]
    return shown or list(runs[-1:])


def _gauge(name: str, documentation: str, labels: tuple[str, ...], values: Values) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, documentation, labels=labels)
    for label_values, value in values.items():
        family.add_metric(label_values, value)
    return family
