"""Converts database rows and the states of runs into protobuf messages."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from google.protobuf import json_format, struct_pb2
from google.protobuf.duration_pb2 import Duration

from pluralllm.common.private_rounds.peer_keys import PeerKeyClaim
from pluralllm.common.trust.audit_chain import AuditEntry
from pluralllm.common.trust.version_record import VersionRecord
from pluralllm.common.wire.messages import MEMBER_ROLES, NOT_REPORTED, ROLES, noise_message, timestamp
from pluralllm.common.words.addresses import Addresses
from pluralllm.common.words.ids import ClientId
from pluralllm.common.words.names import MemberName, ModelName, RoundName, RunName
from pluralllm.common.words.roles import MemberRole
from pluralllm.common.words.spec import RunSpec
from pluralllm.server.members.access import Principal
from pluralllm.server.rounds.state import Outcome, Phase
from pluralllm.server.runs.ended_evaluations import Fairness
from pluralllm.server.runs.live_run import LiveRun
from pluralllm.server.runs.overview import Participant, ParticipantState
from pluralllm.server.runs.reward_queue import RoundRewards
from pluralllm.server.runs.round_sums import NewestSums, RoundSum
from pluralllm.server.runs.status import RunStatus
from pluralllm.server.storage.membership import InviteRecord, IssuedCertificate, Member, MemberState
from pluralllm.server.storage.store import (
    ClientRecord,
    EvaluationRecord,
    EventRecord,
    ReceiptRecord,
    RoundOutcome,
    RoundRecord,
)
from pluralllm.v1 import federation_pb2, operations_pb2
from pluralllm.v1 import resources_pb2 as pb

MEASURED = frozenset({"distance", "norm"})  # of a receipt
REASONS = frozenset({"reason", "message"})  # of a client's failure
NO_SUMS = NewestSums()
MAX_TEXT = 2_000  # characters of one text in a log: earlier releases kept refusals of any length

PHASES = {
    Phase.CREATED: pb.RUN_PHASE_CREATED,
    Phase.WAITING: pb.RUN_PHASE_WAITING,
    Phase.KEYING: pb.RUN_PHASE_KEYING,
    Phase.SHARING: pb.RUN_PHASE_SHARING,
    Phase.COLLECTING: pb.RUN_PHASE_COLLECTING,
    Phase.CONFIRMING: pb.RUN_PHASE_CONFIRMING,
    Phase.UNMASKING: pb.RUN_PHASE_UNMASKING,
    Phase.AGGREGATING: pb.RUN_PHASE_AGGREGATING,
    Phase.EVALUATING: pb.RUN_PHASE_EVALUATING,
    Phase.ENDED: pb.RUN_PHASE_ENDED,
}
OUTCOMES = {
    None: pb.RUN_OUTCOME_UNSPECIFIED,
    Outcome.COMPLETED: pb.RUN_OUTCOME_COMPLETED,
    Outcome.CANCELLED: pb.RUN_OUTCOME_CANCELLED,
    Outcome.ABORTED: pb.RUN_OUTCOME_ABORTED,
}
ROUND_OUTCOMES = {
    RoundOutcome.OPEN: pb.ROUND_OUTCOME_OPEN,
    RoundOutcome.CLOSED: pb.ROUND_OUTCOME_CLOSED,
    RoundOutcome.ABANDONED: pb.ROUND_OUTCOME_ABANDONED,
}
MEMBER_STATES = {
    MemberState.INVITED: pb.MEMBER_STATE_INVITED,
    MemberState.AWAITING_APPROVAL: pb.MEMBER_STATE_AWAITING_APPROVAL,
    MemberState.ACTIVE: pb.MEMBER_STATE_ACTIVE,
    MemberState.EXPIRED: pb.MEMBER_STATE_EXPIRED,
    MemberState.REVOKED: pb.MEMBER_STATE_REVOKED,
    MemberState.UNPROVEN: pb.MEMBER_STATE_UNPROVEN,
}
PARTICIPANT_STATES = {
    ParticipantState.ASSIGNED: pb.PARTICIPANT_STATE_ASSIGNED,
    ParticipantState.WORKING: pb.PARTICIPANT_STATE_WORKING,
    ParticipantState.DONE: pb.PARTICIPANT_STATE_DONE,
    ParticipantState.LOST: pb.PARTICIPANT_STATE_LOST,
    ParticipantState.IDLE: pb.PARTICIPANT_STATE_IDLE,
    ParticipantState.AWAY: pb.PARTICIPANT_STATE_AWAY,
    ParticipantState.REVOKED: pb.PARTICIPANT_STATE_REVOKED,
}


def may_know(reader: Principal, client: ClientId) -> bool:
    """Returns whether a reader of a run may know why a client failed, and why its updates were refused."""
    return reader.role is MemberRole.ADMIN or reader.name == client


def run_message(
    run: LiveRun,
    status: RunStatus,
    latest: Sequence[EvaluationRecord],
    previous: Sequence[EvaluationRecord],
    reader: Principal,
    sums: NewestSums = NO_SUMS,
) -> pb.Run:
    """Returns the protobuf message that describes a run, with what its reader may know.

    `latest` has the evaluations of the newest evaluated model version, and `previous` has the evaluations of the evaluated
    version before it. `sums` has what the newest private rounds say about their updates together.
    """
    scores = [(record.score.group, record.score.alignment_score) for record in latest]
    message = summary_message(run, status, Fairness.of(scores))
    message.MergeFrom(pb.Run(newest_sum=sum_message(sums.newest), scored_sum=sum_message(sums.scored)))
    message.participants.extend(participant_message(person, reader) for person in status.participants)
    message.evaluations.extend(evaluation_message(record) for record in latest)
    message.previous_evaluations.extend(evaluation_message(record) for record in previous)
    for refused in (refusal for refusal in run.state.refusals if may_know(reader, refusal.client)):
        message.refusals.add(
            time=timestamp(refused.at_s),
            client=refused.client,
            round=refused.round,
            reason=refused.reason,
            message=refused.message[:MAX_TEXT],
        )
    return message


def summary_message(run: LiveRun, status: RunStatus, fairness: Fairness | None) -> pb.Run:
    """Returns the message of a run without what grows with the number of its clients.

    `fairness` is that of the newest evaluated model version.
    """
    state = run.state
    return pb.Run(
        name=str(RunName(run.id)),
        spec_sha256=run.record.spec_sha256,
        phase=PHASES[state.phase],
        paused=state.paused,
        outcome=OUTCOMES[state.outcome],
        outcome_reason=state.reason,
        round=state.round,
        rounds=run.spec.last_round,
        version=state.version,
        version_digest=state.model_digest,
        create_time=timestamp(run.record.created_s),
        update_time=timestamp(run.progress.updated_s),
        phase_start_time=timestamp(state.since_s or run.record.created_s),
        phase_deadline=None if state.deadline_s is None else timestamp(state.deadline_s),
        fairness=fairness_message(fairness),
        next=status.next,
        received_bytes=status.received_bytes,
        sent_bytes=status.sent_bytes,
        sequence=run.sequence,
        updates_read=updates_read(run.spec),
        blocked=status.blocked,
        archived=state.archived,
    )


def updates_read(spec: RunSpec) -> "pb.UpdatesRead.ValueType":
    """Returns what the coordinator reads of the updates of a run; unspecified for a run without updates."""
    if spec.rewards is not None:
        return pb.UPDATES_READ_UNSPECIFIED
    return pb.UPDATES_READ_SINGLE if spec.private_rounds is None else pb.UPDATES_READ_SUMS


def participant_message(person: Participant, reader: Principal) -> pb.Participant:
    return pb.Participant(
        client=person.client,
        group=person.group,
        role=ROLES[person.role],
        state=PARTICIPANT_STATES[person.state],
        reason=person.reason if may_know(reader, person.client) else person.observed,
        last_seen_time=timestamp(person.last_seen_s),
        progress=person.progress,
        stage=person.stage,
        weight=person.weight,
        noise=noise_message(person.noise),
    )


def evaluation_message(record: EvaluationRecord) -> pb.GroupEvaluation:
    score = record.score
    return pb.GroupEvaluation(
        group=score.group,
        client=score.client,
        role=ROLES[score.role],
        version=score.version,
        alignment_score=score.alignment_score or 0.0,
        alignment_score_base2=score.alignment_score_base2 or 0.0,
        wasserstein_score=score.wasserstein_score,
        questions=score.questions,
        not_reported=(pb.NOT_REPORTED_UNSPECIFIED if score.not_reported is None else NOT_REPORTED[score.not_reported]),
        context_gain=score.context_gain,
    )


def fairness_message(fairness: Fairness | None) -> pb.Fairness | None:
    return None if fairness is None else pb.Fairness(**asdict(fairness))


def claim_in(message: federation_pb2.PeerKey) -> PeerKeyClaim:
    """Returns the peer key that a client states in Hello."""
    return PeerKeyClaim(message.key_der, message.endorsement, message.proof)


def sum_message(of_round: RoundSum | None) -> pb.RoundSum | None:
    if of_round is None:
        return None
    record, tail = of_round.record, of_round.tail
    return pb.RoundSum(
        round=record.round,
        base_version=record.base_version,
        updates=tail.updates,
        clipped_updates=tail.clipped,
        weight=tail.weight,
        mean_loss=tail.loss,
        mean_base_distance=tail.distance,
        scored=tail.scored,
        mean_alignment_score=tail.score,
        score_histogram=tail.histogram if tail.scored else (),
    )


def receipt_message(record: ReceiptRecord) -> pb.Receipt:
    return pb.Receipt(
        run=record.run,
        round=record.round,
        client=record.receipt.client,
        update_digest=record.receipt.digest,
        examples=record.receipt.examples,
        create_time=timestamp(record.created_s),
    )


def round_message(record: RoundRecord, receipts: Sequence[ReceiptRecord], of_round: RoundSum | None = None) -> pb.Round:
    """Returns the protobuf message of a round. `of_round` is the sum of a private round that is closed."""
    message = round_summary(record, len(receipts), of_round)
    message.cohort.extend(record.cohort)
    message.receipts.extend(map(receipt_message, receipts))
    return message


def round_summary(record: RoundRecord, updates: int, of_round: RoundSum | None = None) -> pb.Round:
    """Returns the protobuf message of a round without its cohort and its receipts. updates: the number of the receipts."""
    return pb.Round(
        name=str(RoundName(record.run, record.round)),
        outcome=ROUND_OUTCOMES[record.outcome],
        reason=record.reason,
        base_version=record.base_version,
        version=record.version,
        create_time=timestamp(record.created_s),
        update_time=timestamp(record.updated_s),
        sum=sum_message(of_round),
        cohort_size=len(record.cohort),
        updates=updates,
    )


def rewards_message(result: RoundRewards) -> operations_pb2.GetRewardsResponse:
    return operations_pb2.GetRewardsResponse(
        outcome=ROUND_OUTCOMES[result.record.outcome],
        reason=result.record.reason,
        rewards=[] if result.rewards is None else result.rewards.tolist(),
        groups=[
            operations_pb2.GroupRewards(
                group=rewards.group,
                role=ROLES[rewards.role],
                weight=rewards.weight,
                rewards=[] if rewards.rewards is None else rewards.rewards.tolist(),
            )
            for rewards in result.groups
        ],
    )


def model_message(record: VersionRecord) -> pb.ModelVersion:
    return pb.ModelVersion(
        name=str(ModelName(record.run, record.version)),
        version=record.version,
        round=record.round,
        digest=record.digest,
        record_sha256=record.record_sha256,
        parent_record_sha256=record.parent_sha256,
        spec_sha256=record.spec_sha256,
        create_time=timestamp(record.created_s),
    )


def version_record_message(record: VersionRecord) -> pb.VersionRecord:
    return pb.VersionRecord(
        version=record.version,
        round=record.round,
        digest=record.digest,
        spec_sha256=record.spec_sha256,
        parent_record_sha256=record.parent_sha256,
        updates=[
            pb.RecordedUpdate(client=client, digest=digest, examples=examples)
            for client, digest, examples in record.updates
        ],
        moments=record.moments,
        weights=record.weights,
        scales=record.scales,
        transcript=record.transcript,
    )


def member_message(
    name: ClientId,
    member: Member | InviteRecord | None,
    state: MemberState,
    certificate: IssuedCertificate | None,
    client: ClientRecord | None,
) -> pb.Member:
    """Returns the protobuf message of a member, of an open invite, or of a client that connected without a certificate.

    `member` is the member or the invite; None for a client that is no member. `certificate` is the member's newest certificate,
    if any. `client` is None if the member has never connected.
    """
    message = pb.Member(name=str(MemberName(name)), state=MEMBER_STATES[state])
    if client is not None:
        message.role, message.group, message.group_role = pb.MEMBER_ROLE_CLIENT, client.group, ROLES[client.role]
        message.training_questions, message.software_version = client.training_questions, client.software_version
        message.create_time.CopyFrom(timestamp(client.created_s))
        message.last_seen_time.CopyFrom(timestamp(client.last_seen_s))
        message.MergeFrom(pb.Member(noise=noise_message(client.noise)))
    if member is not None:
        message.role, message.group = MEMBER_ROLES[member.role], member.group
        is_client = member.role is MemberRole.CLIENT
        message.group_role = ROLES[member.group_role] if is_client else pb.GROUP_ROLE_UNSPECIFIED
        message.create_time.CopyFrom(timestamp(member.created_s))
        message.runs.extend(member.runs)
        message.max_examples = member.max_examples if is_client else 0
    if certificate is not None:
        message.key_sha256, message.serial = certificate.key_sha256, certificate.serial
        message.expire_time.CopyFrom(timestamp(certificate.not_after_s))
    elif isinstance(member, InviteRecord):
        message.expire_time.CopyFrom(timestamp(member.expires_s))
    return message


def audit_message(entry: AuditEntry, sha256: str) -> pb.AuditEvent:
    return pb.AuditEvent(
        sequence=entry.sequence,
        time=timestamp(entry.at_us / 1e6),
        actor=str(MemberName(ClientId(entry.actor))) if entry.actor else "",
        serial=entry.serial,
        action=entry.action,
        object=entry.object,
        result=entry.result,
        facts_json=entry.facts_json,
        previous_sha256=entry.previous_sha256,
        sha256=sha256,
    )


def withheld_message(entry: AuditEntry, sha256: str) -> pb.AuditEvent:
    """Returns the message of an audit entry that the caller may not read: enough of the entry to check the hash chain."""
    return pb.AuditEvent(sequence=entry.sequence, previous_sha256=entry.previous_sha256, sha256=sha256, withheld=True)


def event_message(record: EventRecord, reader: Principal) -> pb.RunEvent:
    """Returns the protobuf message of an event, with what its reader may know.

    Only an administrator reads the numbers that a client measured, and why another client failed.
    """
    shown = {name: fact[:MAX_TEXT] if isinstance(fact, str) else fact for name, fact in record.facts.items()}
    if reader.role is not MemberRole.ADMIN:
        if isinstance(receipt := shown.get("receipt"), Mapping):
            shown["receipt"] = {name: fact for name, fact in receipt.items() if name not in MEASURED}
        if not may_know(reader, ClientId(shown.get("client", reader.name))):
            shown = {name: fact for name, fact in shown.items() if name not in REASONS}
    facts = struct_pb2.Struct()
    json_format.ParseDict(shown, facts)
    return pb.RunEvent(sequence=record.sequence, time=timestamp(record.at_s), kind=record.kind, facts=facts)


def addresses_message(addresses: Addresses) -> pb.Addresses:
    return pb.Addresses(coordinator=addresses.coordinator, enrolment=addresses.enrolment)


def duration(length_s: float) -> Duration:
    """Converts seconds into a protobuf duration, rounded to milliseconds."""
    message = Duration()
    message.FromMilliseconds(round(length_s * 1000))
    return message
