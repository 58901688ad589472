"""The content of the web page as values that can be written as JSON. The module is pure: it does no input or output.

Each curve has at most MAX_POINTS points, so that the content of a long run stays small.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pluralllm.common.predictor.metrics import fairness_index
from pluralllm.common.trust.audit_chain import AuditEntry
from pluralllm.common.trust.version_record import VersionRecord
from pluralllm.common.words.context_gain import IGNORES_CONTEXT, gain_text, ignores_context, mean_gain
from pluralllm.common.words.noise import declared_text
from pluralllm.common.words.not_reported import NotReported, not_reported_text
from pluralllm.common.words.private_rounds import READS_SINGLE, READS_SUMS
from pluralllm.common.words.score_sums import clipped_text, scores_text
from pluralllm.server.rounds.state import EXCHANGING, Phase
from pluralllm.server.runs.live_run import LiveRun
from pluralllm.server.runs.round_sums import NewestSums, RoundSum
from pluralllm.server.runs.status import RunStatus
from pluralllm.server.storage.store import EvaluationRecord, ReceiptRecord, RoundRecord

Facts = dict[str, Any]

MAX_POINTS = 200  # largest number of points of a curve
SHOWN = 25  # number of newest rounds, versions and refusals on the page
TIMED = (Phase.COLLECTING, Phase.EVALUATING, *EXCHANGING)


def run_row(run: LiveRun) -> Facts:
    """Returns the content of the page's row that shows one run in the list of runs."""
    state = run.state
    return {
        "name": run.id,
        "title": run.spec.title,
        "phase": state.phase.value,
        "paused": state.paused,
        "round": state.round,
        "rounds": run.spec.rounds,
        "outcome": state.outcome.value if state.outcome is not None else "",
        "created_s": run.record.created_s,
    }


def run_now(run: LiveRun, status: RunStatus) -> Facts:
    """Returns the current state of a run: phase, deadline, participants, and the reasons why participants are late."""
    state = run.state
    return {
        **run_row(run),
        "now_s": status.at_s,
        "since_s": state.since_s,
        "deadline_s": state.deadline_s if state.phase in TIMED else None,
        "next": status.next,
        "trouble": status.trouble,
        "reason": state.reason,
        "version": state.version,
        "version_digest": state.model_digest,
        "evaluated": state.evaluated,
        "updates": len(state.receipts),
        "slots": state.slots,
        "quorum": state.quorum,
        "received_bytes": status.received_bytes,
        "sent_bytes": status.sent_bytes,
        "asks_for_rewards": run.spec.rewards is not None,
        "reads": _reads(run),
        "clients": [
            {
                "client": person.client,
                "group": person.group,
                "role": person.role.value,
                "state": person.state.value,
                "stage": person.stage,
                "progress": round(person.progress, 3),
                "reason": person.reason,
                "weight": _rounded(person.weight),
                "noise": declared_text(None if person.noise is None else asdict(person.noise)),
            }
            for person in status.participants
        ],
        "refusals": [
            {"at_s": r.at_s, "round": r.round, "client": r.client, "code": r.reason, "message": r.message}
            for r in state.refusals[::-1][:SHOWN]
        ],
    }


def _reads(run: LiveRun) -> str:
    """Returns the sentence about what the coordinator reads of the run's updates; "" for a run without updates."""
    if run.spec.rewards is not None:
        return ""
    return READS_SINGLE if run.spec.private_rounds is None else READS_SUMS


@dataclass(slots=True)
class History:
    """The alignment scores and distances of a run so far. The page keeps this history in memory between two visits.

    A distance is the loss that a client reports with its update. The history keeps the mean distance of each round.
    """

    scores: dict[int, dict[str, float]] = field(default_factory=dict)  # by version, then group; reported scores only
    roles: dict[str, str] = field(default_factory=dict)  # by group
    distances: dict[int, float] = field(default_factory=dict)  # by round: mean over its updates
    after: int = 0  # the newest evaluation's id
    rounds: set[int] = field(default_factory=set)  # rounds whose updates were read
    # By version, then group: the reasons of the groups that do not report their scores.
    not_reported: dict[int, dict[str, NotReported]] = field(default_factory=dict)
    gains: dict[int, dict[str, float]] = field(default_factory=dict)  # context gains, like the scores

    def add_scores(self, rows: Sequence[tuple[int, EvaluationRecord]]) -> None:
        for number, row in rows:
            self.after = max(self.after, number)
            score = row.score
            scores = self.scores.setdefault(score.version, {})
            reasons = self.not_reported.setdefault(score.version, {})
            if score.alignment_score is not None:
                scores[score.group] = score.alignment_score
                if score.context_gain is not None:
                    self.gains.setdefault(score.version, {})[score.group] = score.context_gain
                reasons.pop(score.group, None)
            elif score.not_reported is not None and score.group not in scores:
                reasons[score.group] = score.not_reported
            self.roles[score.group] = score.role.value

    def add_round(self, number: int, receipts: Sequence[ReceiptRecord], of_round: RoundSum | None = None) -> None:
        """Adds the mean distance of a round. of_round: the sum of a private round, in which no client reports its own."""
        self.rounds.add(number)
        if of_round is not None and of_round.tail.distance is not None:
            self.distances[number] = of_round.tail.distance
        distances = [row.receipt.distance for row in receipts if row.receipt.distance is not None]
        if distances:
            self.distances[number] = sum(distances) / len(distances)


def history_facts(
    run: LiveRun,
    history: History,
    rounds: Sequence[RoundRecord],
    versions: Sequence[VersionRecord],
    sums: NewestSums,
) -> Facts:
    """Returns the curves of a run, and its newest rounds and model versions.

    The curves are the groups' scores and their fairness by model version, and the loss by round. A version whose evaluation has
    not ended is left out of the curves. A group that does not report its score has no point there, and fairness is over the
    other groups; the group's row has the reason for the newest version. The mean context gain is a text about the newest version.
    Texts about `sums` say what the newest private rounds tell about their updates together.
    """
    ended = -1 if run.state.evaluated is None else run.state.evaluated
    shown = thinned(sorted(version for version in history.scores if version <= ended))
    groups = {name: [history.scores[version].get(name) for version in shown] for name in sorted(history.roles)}
    reasons = history.not_reported.get(shown[-1], {}) if shown else {}
    fairness = [fairness_index(scores) if (scores := list(history.scores[v].values())) else None for v in shown]
    lost = thinned(sorted(history.distances))
    gain = mean_gain(history.gains.get(shown[-1], {}).values()) if shown else None
    return {
        "name": run.id,
        "evaluated": run.state.evaluated,
        "versions": shown,
        "groups": [
            {
                "group": name,
                "role": history.roles[name],
                "scores": [_rounded(score) for score in scores],
                "not_reported": not_reported_text(reasons[name]) if name in reasons else "",
            }
            for name, scores in groups.items()
        ],
        "fairness": [_rounded(value) for value in fairness],
        "context_gain": ""
        if gain is None
        else gain_text(gain) + (f": {IGNORES_CONTEXT}" if ignores_context(gain) else ""),
        "loss": [[number, _rounded(history.distances[number])] for number in lost],
        "scores_in_sum": _scores_text(sums.scored),
        "clipped": _clipped_text(sums.newest),
        "rounds": [_round_row(record) for record in rounds[:SHOWN]],
        "lineage": [_version_row(version) for version in reversed(versions[-SHOWN:])],
    }


def _scores_text(of_round: RoundSum | None) -> str:
    if of_round is None or (mean := of_round.tail.score) is None:
        return ""
    version, tail = of_round.record.base_version, of_round.tail
    return scores_text(version, tail.scored, tail.updates, mean, tail.histogram)


def _clipped_text(of_round: RoundSum | None) -> str:
    if of_round is None:
        return ""
    return clipped_text(of_round.record.round, of_round.tail.clipped, of_round.tail.updates)


def thinned(numbers: Sequence[int]) -> list[int]:
    """Returns at most MAX_POINTS of the numbers, evenly spaced, with the first and the last number among them."""
    if len(numbers) <= MAX_POINTS:
        return list(numbers)
    last = len(numbers) - 1
    return [numbers[round(point * last / (MAX_POINTS - 1))] for point in range(MAX_POINTS)]


def audit_row(entry: AuditEntry) -> Facts:
    """Returns the content of the page's row that shows one entry of the audit log."""
    about: Mapping[str, Any] = {"at_s": entry.at_us / 1e6, "actor": entry.actor, "action": entry.action}
    return {**about, "object": entry.object, "result": entry.result}


def _round_row(record: RoundRecord) -> Facts:
    return {
        "round": record.round,
        "outcome": record.outcome.value,
        "reason": record.reason,
        "clients": len(record.cohort),
        "seconds": round(record.updated_s - record.created_s, 1),
    }


def _version_row(record: VersionRecord) -> Facts:
    return {
        "version": record.version,
        "digest": record.digest,
        "parent": record.parent_sha256,
        "record": record.record_sha256,
        "updates": len(record.updates),
        "created_s": record.created_s,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
