"""The content of the web page as values that can be written as JSON. The module is pure: it does no input or output.

Each curve has at most MAX_POINTS points, so that the content of a long run stays small.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import Any

from pluralllm.common.predictor.metrics import fairness_index
from pluralllm.common.trust.audit_chain import AuditEntry
from pluralllm.common.trust.version_record import VersionRecord
from pluralllm.common.words.context_gain import LEAST_CONTEXT_GAIN, gain_statement, mean_gain
from pluralllm.common.words.noise import declared_text
from pluralllm.common.words.not_reported import NotReported, not_reported_text
from pluralllm.common.words.run_state import READS_SINGLE, READS_SUMS, run_state_text
from pluralllm.common.words.score_sums import clipped_text, scores_text
from pluralllm.common.words.spec import GroupRole
from pluralllm.common.words.thinning import thinned
from pluralllm.server.observe.page_scales import scale_of
from pluralllm.server.rounds.state import EXCHANGING, Phase
from pluralllm.server.runs.live_run import LiveRun
from pluralllm.server.runs.overview import Participant, ParticipantState
from pluralllm.server.runs.round_sums import NewestSums, RoundSum
from pluralllm.server.runs.status import RunStatus
from pluralllm.server.storage.store import EvaluationRecord, ReceiptRecord, RoundRecord

Facts = dict[str, Any]

MAX_POINTS = 200  # largest number of points of a curve
MAX_SCORES = 20_000  # largest number of points of all groups' curves together, while each has LEAST_POINTS
LEAST_POINTS = 30
ROLES = tuple(role.value for role in GroupRole)
SHOWN = 25  # number of newest rounds, versions and refusals on the page
TIMED = (Phase.COLLECTING, Phase.EVALUATING, *EXCHANGING)


def run_row(run: LiveRun) -> Facts:
    """Returns the content of the page's row that shows one run in the list of runs."""
    state = run.state
    return {
        "name": run.id,
        "title": run.spec.title,
        "phase": state.phase.value,
        "state": run_state_text(state.phase.value, _outcome(run), paused=state.paused, archived=state.archived),
        "round": state.round,
        "rounds": run.spec.last_round,
        "outcome": _outcome(run),
        "created_s": run.record.created_s,
    }


def _outcome(run: LiveRun) -> str:
    return "" if run.state.outcome is None else run.state.outcome.value


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
        "reads": reads_text(run, status.participants),
        "people": people_text(status.participants),
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


def reads_text(run: LiveRun, people: Sequence[Participant]) -> str:
    """Returns the sentence about what the coordinator can see in the run; "" for a run without updates."""
    if run.spec.rewards is not None:
        return ""
    reads = READS_SINGLE if run.spec.private_rounds is None else READS_SUMS
    noised = sum(person.noise is not None and person.noise.noised for person in people)
    if not noised:
        return reads
    return (
        f"{reads}; {noised} of {len(people)} clients declare that their answers have noise, which nobody else can check"
    )


def people_text(people: Sequence[Participant]) -> str:
    """Returns how many clients are in each state, for example "2 done, 1 away"."""
    count = Counter(person.state for person in people)
    return ", ".join(f"{count[state]} {state.value}" for state in ParticipantState if count[state])


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

    def mean(self, version: int, role: str) -> float | None:
        """Returns the mean score of a version over the groups of a role that report theirs; None if there is none."""
        scores = [score for group, score in self.scores[version].items() if self.roles[group] == role]
        return sum(scores) / len(scores) if scores else None

    def mean_without_context(self, version: int) -> float | None:
        """Returns the mean score of a version with uniform answers as context, which is the score minus the context gain.

        The mean is over the groups that report both; None if there is none.
        """
        scores = self.scores[version]
        without = [scores[group] - gain for group, gain in self.gains.get(version, {}).items() if group in scores]
        return sum(without) / len(without) if without else None

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
    most = max(LEAST_POINTS, min(MAX_POINTS, MAX_SCORES // max(1, len(history.roles))))
    shown = thinned(sorted(version for version in history.scores if version <= ended), most)
    groups = {name: [history.scores[version].get(name) for version in shown] for name in sorted(history.roles)}
    reasons = history.not_reported.get(shown[-1], {}) if shown else {}
    gains = history.gains.get(shown[-1], {}) if shown else {}
    fairness = [fairness_index(scores) if (scores := list(history.scores[v].values())) else None for v in shown]
    mean_gains = [mean_gain(history.gains.get(v, {}).values()) for v in shown]
    lost = thinned(sorted(history.distances), MAX_POINTS)
    gain = mean_gains[-1] if shown else None
    lines = {role: [history.mean(v, role) for v in shown] for role in ROLES if role in history.roles.values()}
    without = [history.mean_without_context(v) for v in shown]
    return {
        "name": run.id,
        "evaluated": run.state.evaluated,
        "versions": shown,
        "groups": [
            {
                "group": name,
                "role": history.roles[name],
                "scores": [_rounded(score) for score in scores],
                "gain": _rounded(gains.get(name)),
                "not_reported": not_reported_text(reasons[name]) if name in reasons else "",
            }
            for name, scores in groups.items()
        ],
        "means": {role: [_rounded(value) for value in line] for role, line in lines.items()},
        "without_context": [_rounded(value) for value in without],
        "fairness": [_rounded(value) for value in fairness],
        "gains": [_rounded(value) for value in mean_gains],
        "least_gain": LEAST_CONTEXT_GAIN,
        "context_gain": gain_statement(gain) if shown and history.scores[shown[-1]] else "",
        "loss": [[number, _rounded(history.distances[number])] for number in lost],
        "axes": {
            "versions": scale_of(shown, whole=True),
            "rounds": scale_of(lost, whole=True),
            "alignment": scale_of([*chain.from_iterable(groups.values()), *without], most=1.0),
            "fairness": scale_of(fairness, most=1.0),
            "gains": scale_of([*mean_gains, 0.0, LEAST_CONTEXT_GAIN], most=1.0),
            "loss": scale_of(history.distances[number] for number in lost),
        },
        "pace_s": _pace_s(rounds),
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


def _pace_s(rounds: Sequence[RoundRecord]) -> float | None:
    """Returns the mean seconds from the start of one round to the start of the next, over the newest rounds; None for one."""
    begun = [record.created_s for record in rounds]
    return None if len(begun) < 2 else (max(begun) - min(begun)) / (len(begun) - 1)


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
